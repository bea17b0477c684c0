# Stands in for nixpkgs as the input of our flake: every output is evaluated down to its derivations,
# which nobody builds.
{
  outputs =
    { self }:
    let
      base = import ./lib.nix;
      lib = base // {
        genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
        licenses.mit.spdxId = "MIT";
        platforms = {
          linux = [
            "x86_64-linux"
            "aarch64-linux"
          ];
          darwin = [
            "x86_64-darwin"
            "aarch64-darwin"
          ];
        };
        optionals = c: l: if c then l else [ ];
      };
      packages =
        system:
        let
          isLinux = builtins.match ".*-linux" system != null;
          # Derivations that could be instantiated; a list in an attribute is what stdenv makes of it.
          drv =
            name: attrs:
            derivation (
              {
                inherit name system;
                builder = "/bin/sh";
              }
              // attrs
            );
          simple = name: (drv name { }) // { inherit name; };
          pkgs = {
            inherit lib system;
            stdenv = {
              buildPlatform.canExecute = _: true;
              hostPlatform = {
                inherit system isLinux;
                isDarwin = !isLinux;
              };
            };
            callPackage =
              f: args:
              let
                function = if builtins.isFunction f then f else import f;
                wanted = builtins.intersectAttrs (builtins.functionArgs function) pkgs;
              in
              function (wanted // args);
            buildGoModule =
              a:
              let
                d = drv "${a.pname}-${a.version}" (removeAttrs a [ "meta" "env" ] // a.env);
              in
              d // { inherit (a) meta pname version; };
            runCommand = name: env: script: drv name (env // { inherit script; });
            mkShell = a: drv "shell" (removeAttrs a [ "env" ] // (a.env or { }));
            closureInfo = a: drv "closure-info" a;
            testers.runNixOSTest =
              t: drv "vm-test-${t.name}" { nodes = builtins.attrNames t.nodes; script = t.testScript; };
            nixfmt-tree = simple "nixfmt-tree" // { meta.mainProgram = "treefmt"; };
          }
          // builtins.listToAttrs (
            map (name: { inherit name; value = simple name; }) [
              "gopls"
              "go-tools"
              "jq"
              "sqlite"
              "xz"
              "zstd"
              "iproute2"
              "nginx"
              "installShellFiles"
              "nix"
            ]
          );
        in
        pkgs;
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs (lib.platforms.linux ++ lib.platforms.darwin) packages;
    };
}
