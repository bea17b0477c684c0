# The services and their socket as systemd sees them. The NixOS module, the home-manager module and the
# plain units in contrib/systemd all come from here.
{
  lib,
  # Commands and what they read.
  agent, # the agent with its arguments
  standby, # flurry-standby with its arguments
  credentials, # name → path
  # Newer systemd slows restarts down by itself.
  hasRestartSteps,
}:
let
  # What neither process ever needs. Together with the address families below this scores about 1.2 in
  # `systemd-analyze security`; what is left is that the agent talks to the network.
  sandbox = {
    DynamicUser = true;
    # The control socket's group. It has members, so it cannot be dynamic; and a dynamic user must not
    # have a static group's name.
    User = "flurry-agent";
    Group = "flurry";
    UMask = "0077";
    CapabilityBoundingSet = "";
    AmbientCapabilities = "";
    NoNewPrivileges = true;
    ProtectSystem = "strict"; # /nix too: the store and its database are only read
    ProtectHome = true;
    PrivateTmp = true;
    PrivateDevices = true;
    DevicePolicy = "closed";
    PrivateUsers = true;
    PrivateMounts = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProcSubset = "pid";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    RemoveIPC = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    KeyringMode = "private";
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
  };

  # Whatever happens, it is started again, for ever: a start limit would take the socket down, and a
  # dead port makes Nix fail builds.
  restart = {
    Restart = "always";
    RestartSec = "100ms";
  }
  // lib.optionalAttrs hasRestartSteps {
    RestartSteps = 8;
    RestartMaxDelaySec = "10s";
  };
in
rec {
  # For [Unit] of both services.
  startLimitIntervalSec = 0;

  # The attributes that NixOS' systemd.sockets and systemd.services take.
  units = listen: {
    sockets.flurry = {
      description = "Flurry's port for Nix";
      wantedBy = [ "sockets.target" ];
      # ":6490" is every address, which systemd writes without the colon.
      listenStreams = map (lib.removePrefix ":") listen;
      socketConfig = socket;
    };
    services.flurry = {
      description = "Flurry, peer-to-peer sharing of Nix store paths";
      documentation = [ "man:flurry(1)" ];
      wantedBy = [ "multi-user.target" ];
      requires = [ "flurry.socket" ];
      wants = [ "network-online.target" ];
      after = [
        "flurry.socket"
        "network-online.target"
      ];
      inherit environment startLimitIntervalSec;
      serviceConfig = service;
    };
    services.flurry-standby = {
      description = "Flurry's stand-in, which answers Nix when the agent does not";
      documentation = [ "man:flurry(1)" ];
      wantedBy = [ "multi-user.target" ];
      requires = [ "flurry.socket" ];
      after = [ "flurry.socket" ];
      inherit startLimitIntervalSec;
      serviceConfig = standbyService;
    };
  };

  service =
    sandbox
    // restart
    // {
      Type = "notify";
      NotifyAccess = "main";
      ExecStart = agent;
      WatchdogSec = "30s"; # far below Nix's stall limit of 300 s
      TimeoutStartSec = "1min";
      TimeoutStopSec = "5s"; # it stops within one
      Sockets = "flurry.socket";

      StateDirectory = "flurry";
      StateDirectoryMode = "0700";
      RuntimeDirectory = "flurry";
      RuntimeDirectoryMode = "0750"; # the group reaches the control socket
      LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") credentials;

      RestrictAddressFamilies = [
        "AF_INET"
        "AF_INET6"
        "AF_UNIX" # nix-daemon, sd_notify, control
        "AF_NETLINK" # the list of network interfaces
      ];
      # Bounds, not needs: collected NARs are in files, whose cache counts here but is given back.
      MemoryMax = "1G";
      TasksMax = 512;
      LimitNOFILE = 65536;
    };

  standbyService =
    sandbox
    // restart
    // {
      Type = "exec";
      ExecStart = standby;
      Sockets = "flurry.socket";
      PrivateNetwork = true; # the socket that it is given belongs to the other side
      RestrictAddressFamilies = [ "AF_UNIX" ];
      MemoryMax = "64M";
      TasksMax = 64;
    };

  socket = {
    FileDescriptorName = "substituter";
    Backlog = 4096; # connections that wait while the agent restarts
    NoDelay = true;
    FreeBind = true; # the address may come later than the socket
    TriggerLimitIntervalSec = 0; # never give the socket up
  };

  # Kept below MemoryMax, so that Go collects its garbage before the kernel kills.
  environment.GOMEMLIMIT = "768MiB";
}
