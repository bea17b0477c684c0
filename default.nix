# Without flakes: `nix-build`, or (import ./default.nix { }).nixosModule.
{
  pkgs ? import <nixpkgs> { },
}:
let
  package = pkgs.callPackage ./package.nix { };
  # Each module brings the package along.
  withPackage = module: {
    imports = [ module ];
    nixpkgs.overlays = [ (import ./nixos-module/overlay.nix) ];
  };
in
package
// {
  flurry = package;
  overlay = import ./nixos-module/overlay.nix;
  nixosModule = withPackage ./nixos-module;
  darwinModule = withPackage ./nixos-module/darwin.nix;
  homeModule = withPackage ./nixos-module/home-manager.nix;
}
