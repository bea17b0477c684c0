# Adds pkgs.flurry.
final: _: { flurry = final.callPackage ../package.nix { }; }
