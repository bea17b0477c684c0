# home-manager: services.flurry, for machines whose system configuration is not ours. The agent runs as
# the user and reads the store, which everybody may. Nix takes substituters from trusted users only.
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
    platform = "home";
  };
  derived = common.derive cfg;
  configFile = derived.configFile (_: path: path);
  agent = "${lib.getExe cfg.package} agent --config ${configFile}";
  unit = import ./unit.nix {
    inherit lib agent;
    standby = "${lib.getExe' cfg.package "flurry-standby"} -priority ${toString cfg.settings.substituter.priority} -store-dir ${lib.escapeShellArg cfg.settings.store.dir}";
    credentials = { };
    hasRestartSteps = false; # the distribution's systemd is not known here
  };
  # A user's manager may not change users or mounts; what works without is kept.
  forUser = lib.filterAttrs (
    n: _:
    lib.elem n [
      "Type"
      "NotifyAccess"
      "ExecStart"
      "Restart"
      "RestartSec"
      "WatchdogSec"
      "TimeoutStartSec"
      "TimeoutStopSec"
      "Sockets"
      "StateDirectory"
      "StateDirectoryMode"
      "RuntimeDirectory"
      "RuntimeDirectoryMode"
      "UMask"
      "NoNewPrivileges"
      "LockPersonality"
      "MemoryDenyWriteExecute"
      "RestrictRealtime"
      "RestrictSUIDSGID"
      "RestrictNamespaces"
      "RestrictAddressFamilies"
      "SystemCallArchitectures"
      "SystemCallErrorNumber"
      "SystemCallFilter"
      "MemoryMax"
      "TasksMax"
    ]
  );
in
{
  options.services.flurry = common.options;

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        inherit (derived) assertions warnings;
        home.packages = [ cfg.package ];
        nix.settings = lib.mkIf cfg.configureNix {
          substituters = [ derived.url ];
          trusted-public-keys = derived.extraKeys;
        };
      }

      (lib.mkIf pkgs.stdenv.hostPlatform.isLinux {
        systemd.user.sockets.flurry = {
          Unit.Description = "Flurry's port for Nix";
          Socket = unit.socket // {
            ListenStream = map (lib.removePrefix ":") cfg.settings.substituter.listen;
          };
          Install.WantedBy = [ "sockets.target" ];
        };
        systemd.user.services.flurry = {
          Unit = {
            Description = "Flurry, peer-to-peer sharing of Nix store paths";
            Requires = [ "flurry.socket" ];
            After = [ "flurry.socket" ];
            StartLimitIntervalSec = unit.startLimitIntervalSec;
          };
          Service = forUser unit.service // {
            Environment = lib.mapAttrsToList (n: v: "${n}=${v}") unit.environment;
          };
          Install.WantedBy = [ "default.target" ];
        };
        systemd.user.services.flurry-standby = {
          Unit = {
            Description = "Flurry's stand-in, which answers Nix when the agent does not";
            Requires = [ "flurry.socket" ];
            After = [ "flurry.socket" ];
            StartLimitIntervalSec = unit.startLimitIntervalSec;
          };
          Service = forUser unit.standbyService;
          Install.WantedBy = [ "default.target" ];
        };
      })

      (lib.mkIf pkgs.stdenv.hostPlatform.isDarwin {
        launchd.agents.flurry = {
          enable = true;
          config = {
            ProgramArguments = [
              (lib.getExe cfg.package)
              "agent"
              "--config"
              "${configFile}"
            ];
            RunAtLoad = true;
            KeepAlive = true;
            ThrottleInterval = 1;
            ProcessType = "Background";
          };
        };
      })
    ]
  );
}
