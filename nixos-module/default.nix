# NixOS: services.flurry.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.flurry;
  common = import ./options.nix {
    inherit lib pkgs;
    platform = "nixos";
  };
  derived = common.derive cfg;
  firewall = config.networking.firewall;

  unit = import ./unit.nix {
    inherit lib;
    agent = "${lib.getExe cfg.package} agent --config ${configFile}";
    standby = "${lib.getExe' cfg.package "flurry-standby"} -priority ${toString cfg.settings.substituter.priority} -store-dir ${lib.escapeShellArg cfg.settings.store.dir}";
    credentials = derived.secrets;
    hasRestartSteps = lib.versionAtLeast config.systemd.package.version "254";
  };

  units = unit.units cfg.settings.substituter.listen;

  # Secrets reach the agent as credentials, whoever owns their files.
  configFile = derived.configFile (name: _: "/run/credentials/flurry.service/${name}");

  # Some firewall rule of the user's already lets peers in.
  opened =
    let
      has = f: lib.all (p: lib.elem p f.allowedTCPPorts) derived.peerPorts;
    in
    has firewall || lib.any has (lib.attrValues firewall.interfaces);
in
{
  options.services.flurry = common.options // {
    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      example = true;
      description = ''
        Whether to open the ports on which neighbours find this machine and take from it: those of
        {option}`services.flurry.settings.peers.listen` (TCP and UDP), and UDP 5353 for multicast DNS.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    inherit (derived) assertions;
    warnings =
      derived.warnings
      ++ lib.optional (derived.sharing && !cfg.openFirewall && firewall.enable && !opened) ''
        services.flurry shares this machine's store paths, but the firewall keeps neighbours out. Set
        services.flurry.openFirewall = true, or settings.peers.listen = [ ] to take without giving.
      '';

    # A plain definition: the default (cache.nixos.org) is defined with mkAfter, so it stays, once, behind.
    nix.settings = lib.mkIf cfg.configureNix {
      substituters = [ derived.url ];
      trusted-public-keys = derived.extraKeys;
    };

    networking.firewall = lib.mkIf cfg.openFirewall {
      allowedTCPPorts = derived.peerPorts;
      allowedUDPPorts = derived.peerPorts ++ lib.optional cfg.settings.peers.mdns 5353;
    };

    environment.systemPackages = [ cfg.package ];
    environment.etc."flurry/config.toml".source = configFile;

    # Its members may ask and steer the agent with the command line.
    users.groups.flurry = { };

    # It serves the very switch that restarts it: one quick restart at the end, not stopped meanwhile.
    systemd.services = lib.mapAttrs (_: u: u // { stopIfChanged = false; }) units.services;
    systemd.sockets = units.sockets;
  };
}
