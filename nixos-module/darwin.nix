# nix-darwin: services.flurry. There is no socket activation as systemd has it: the agent's own
# supervisor keeps the port.
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
    platform = "darwin";
  };
  derived = common.derive cfg;
  state = "/var/lib/flurry";
  configFile = derived.configFile (_: path: path);
in
{
  options.services.flurry = common.options;

  config = lib.mkIf cfg.enable {
    inherit (derived) assertions warnings;

    nix.settings = lib.mkIf cfg.configureNix {
      substituters = [ derived.url ];
      trusted-public-keys = derived.extraKeys;
    };

    environment.systemPackages = [ cfg.package ];
    environment.etc."flurry/config.toml".source = configFile;

    users.users._flurry = {
      uid = lib.mkDefault 6490;
      gid = config.users.groups._flurry.gid;
      description = "Flurry";
      home = state;
      isHidden = true;
    };
    users.groups._flurry.gid = lib.mkDefault 6490;
    users.knownUsers = [ "_flurry" ];
    users.knownGroups = [ "_flurry" ];

    # launchd makes no directories.
    system.activationScripts.launchd.text = lib.mkBefore ''
      install -d -m 0700 -o _flurry -g _flurry ${state}
    '';

    launchd.daemons.flurry = {
      command = "${lib.getExe cfg.package} agent --config ${configFile}";
      serviceConfig = {
        UserName = "_flurry";
        GroupName = "_flurry";
        EnvironmentVariables.STATE_DIRECTORY = state;
        RunAtLoad = true;
        KeepAlive = true;
        ThrottleInterval = 1; # seconds; launchd's own 10 would leave Nix without its port
        ProcessType = "Background";
        Umask = 63; # 0077
        SoftResourceLimits.NumberOfFiles = 65536;
        StandardErrorPath = "${state}/log";
      };
    };
  };
}
