# What the modules take from nixpkgs besides lib: the package, and builders. A "derivation" here is its
# text; test/systemd/machine.nix hands the texts to the test, which runs them.
{
  lib,
  package, # directory with bin/
  isLinux ? true,
}:
let
  fakeDrv =
    name: outPath: extra:
    {
      type = "derivation";
      inherit name outPath;
    }
    // extra;
  quote = builtins.toJSON; # a JSON string is a TOML string
  scalar =
    v:
    if builtins.isList v then
      "[${lib.concatMapStringsSep ", " scalar v}]"
    else if builtins.isAttrs v then
      "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (n: x: "${quote n} = ${scalar x}") v)} }"
    else
      quote v;
  isTable = builtins.isAttrs;
  isTables = v: builtins.isList v && v != [ ] && lib.all isTable v;
  table =
    path: v:
    let
      here = path ++ [ ];
      plain = lib.filterAttrs (_: x: !isTable x && !isTables x) v;
      name = n: lib.concatStringsSep "." (here ++ [ n ]);
    in
    lib.concatStringsSep "" (lib.mapAttrsToList (n: x: "${n} = ${scalar x}\n") plain)
    + lib.concatStringsSep "" (
      lib.mapAttrsToList (
        n: x:
        if isTable x then
          "\n[${name n}]\n${table (here ++ [ n ]) x}"
        else if isTables x then
          lib.concatMapStrings (e: "\n[[${name n}]]\n${table (here ++ [ n ]) e}") x
        else
          ""
      ) v
    );
in
{
  flurry = fakeDrv "flurry" package { meta.mainProgram = "flurry"; };
  systemd = fakeDrv "systemd" "/usr" { version = "252"; };
  stdenv = {
    buildPlatform.canExecute = _: true;
    hostPlatform = {
      inherit isLinux;
      isDarwin = !isLinux;
    };
  };
  formats.toml = _: {
    type = lib.types.anything;
    generate = name: value: fakeDrv name "/etc/flurry/unchecked.toml" { text = table [ ] value; };
  };
  runCommand = name: env: script: fakeDrv name "/etc/flurry/config.toml" { inherit script; raw = env.raw.text; };
}
