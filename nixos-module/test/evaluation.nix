# The module's promises (test/systemd/module-test.nix), evaluated with the real lib; the build fails
# with the list of those that do not hold.
{ pkgs }:
let
  results = import ../../test/systemd/module-test.nix { inherit (pkgs) lib; };
  broken = builtins.filter (r: !r.ok) results;
in
pkgs.runCommand "flurry-module-evaluation" { } (
  if broken == [ ] then
    "echo ${toString (builtins.length results)} promises hold >$out"
  else
    ''
      cat >&2 <<'END'
      ${pkgs.lib.concatMapStringsSep "\n" (r: "${r.name}: ${builtins.toJSON r.got}") broken}
      END
      exit 1
    ''
)
