# What the package is built from: without documentation, tests' material and what Nix itself reads, so
# that changing those rebuilds nothing. Where lib or Nix is too old for lib.fileset, the whole tree.
{ lib }:
let
  root = ./..;
  names = lib.filter (n: n != "") (lib.splitString "\n" (builtins.readFile ./source.list));
  # lib.fileset needs builtins.readFileType, which Nix has since 2.14.
  modern = lib ? fileset && builtins ? readFileType;
in
if modern then
  lib.fileset.toSource {
    inherit root;
    fileset = lib.fileset.unions (map (n: lib.fileset.maybeMissing (root + "/${n}")) names);
  }
else
  builtins.path {
    path = root;
    name = "flurry-source";
    filter = path: _: builtins.elem (builtins.head (lib.splitString "/" (lib.removePrefix (toString root + "/") path))) names;
  }
