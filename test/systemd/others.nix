# The nix-darwin and home-manager modules, evaluated far enough to see every value they define.
{
  lib ? import ./standin/lib.nix,
}:
let
  inherit (lib) mkOption types;
  free = mkOption {
    type = types.anything;
    default = { };
  };
  list = mkOption {
    type = types.listOf types.raw;
    default = [ ];
  };
  evaluate =
    isLinux: module: extra:
    (lib.evalModules {
      specialArgs.pkgs = import ./standin/pkgs.nix {
        inherit lib isLinux;
        package = "/opt/flurry";
      };
      modules = [
        module
        extra
        {
          options.assertions = list;
          options.warnings = list;
          options.nix.settings = free;
          config.services.flurry = {
            enable = true;
            settings.peers.secret_file = "/run/secrets/group";
          };
        }
      ];
    }).config;
  darwin = evaluate false ../../nixos-module/darwin.nix {
    options.environment = free;
    options.users = free;
    options.system = free;
    options.launchd = free;
  };
  home =
    isLinux:
    evaluate isLinux ../../nixos-module/home-manager.nix {
      options.home = free;
      options.systemd = free;
      options.launchd = free;
    };
  must = what: ok: if ok then what else throw "wrong: ${what}";
  linuxHome = home true;
  macHome = home false;
  # Values that would be derivations are shown by name.
  shown = v: if lib.isDerivation v then v.name else if builtins.isAttrs v then lib.mapAttrs (_: shown) v else if builtins.isList v then map shown v else v;
in
builtins.deepSeq (map shown [ darwin linuxHome macHome ]) [
  (must "launchd keeps the agent alive" darwin.launchd.daemons.flurry.serviceConfig.KeepAlive)
  (must "nix-darwin: Nix asks the agent" (darwin.nix.settings.substituters == [ "http://127.0.0.1:6490" ]))
  (must "home-manager leaves Nix alone unless asked" (linuxHome.nix.settings == { }))
  (must "home-manager has a socket" (linuxHome.systemd.user.sockets.flurry.Socket.FileDescriptorName == "substituter"))
  (must "home-manager asks for nothing that users may not have" (!(linuxHome.systemd.user.services.flurry.Service ? DynamicUser)))
  (must "home-manager on macOS has an agent of launchd" macHome.launchd.agents.flurry.enable)
]
