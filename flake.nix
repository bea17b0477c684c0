{
  description = "Flurry: a peer-to-peer agent for Nix stores";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      forAll = f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      isLinux = pkgs: pkgs.stdenv.hostPlatform.isLinux;

      day = self.lastModifiedDate or "19700101000000";
      commit = self.rev or self.dirtyRev or "unknown";
      stamp = {
        version = "0.1.0-${builtins.substring 0 8 day}-${builtins.substring 0 7 commit}";
        inherit commit;
      };
      overlay = final: _: { flurry = final.callPackage ./package.nix stamp; };
      withPackage = module: {
        imports = [ module ];
        nixpkgs.overlays = [ overlay ];
      };
    in
    {
      overlays.default = overlay;

      nixosModules.default = withPackage ./nixos-module;
      darwinModules.default = withPackage ./nixos-module/darwin.nix;
      homeModules.default = withPackage ./nixos-module/home-manager.nix;

      packages = forAll (pkgs: rec {
        flurry = pkgs.callPackage ./package.nix stamp;
        default = flurry;
      });

      apps = forAll (pkgs: {
        default = {
          type = "app";
          program = lib.getExe self.packages.${pkgs.stdenv.hostPlatform.system}.flurry;
          meta.description = "The Flurry agent and its command line";
        };
      });

      devShells = forAll (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ self.packages.${pkgs.stdenv.hostPlatform.system}.flurry ];
          packages = [
            pkgs.gopls
            pkgs.go-tools
            pkgs.jq
            pkgs.sqlite
            pkgs.xz
            pkgs.zstd
          ]
          ++ lib.optionals (isLinux pkgs) [
            pkgs.iproute2
            pkgs.nginx
          ];
          env.CGO_ENABLED = "0";
        };
      });

      formatter = forAll (pkgs: pkgs.nixfmt-tree or pkgs.nixfmt-rfc-style);

      checks = forAll (
        pkgs:
        {
          # Builds it and runs the tests that need nothing but Go.
          unit = self.packages.${pkgs.stdenv.hostPlatform.system}.flurry;
          module = import ./nixos-module/test/evaluation.nix { inherit pkgs; };
        }
        // lib.optionalAttrs (isLinux pkgs) {
          nixos = import ./nixos-module/test/nixos.nix {
            inherit pkgs;
            module = self.nixosModules.default;
          };
        }
      );
    };
}
