# What the NixOS module promises, as a list of { name, ok, got }. Evaluated by scripts/test-systemd, with
# the stand-in lib and, where there is one, with the real one.
{
  lib ? import ./standin/lib.nix,
}:
let
  machine = configuration: import ./machine.nix { inherit lib configuration; };
  flurry = settings: machine { services.flurry = { enable = true; } // settings; };
  withSettings = settings: flurry { inherit settings; };
  off = machine { };
  on = flurry { };
  central = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
  office = {
    url = "https://cache.office.example";
    keys = [ "office-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
  };

  is = name: got: want: {
    inherit name got;
    ok = got == want;
  };
  # A wrong setting fails evaluation with a message that has both the key and the remedy.
  refused = name: m: key: remedy: {
    inherit name;
    got = m.failures;
    ok = builtins.length m.failures == 1 && lib.hasInfix key (builtins.head m.failures) && lib.hasInfix remedy (builtins.head m.failures);
  };
  # A value of the wrong type, or an unknown option, does not evaluate at all.
  fails = name: value: {
    inherit name;
    got = "evaluated";
    ok = !(builtins.tryEval (builtins.deepSeq value null)).success;
  };
  has = unit: text: lib.hasInfix "\n${text}\n" unit;
  asked = m: removeAttrs m [ "evaluated" "toml" ];
  options = lib.filterAttrs (_: o: o._type or null == "option") off.evaluated.options.services.flurry;
  service = on.units."flurry.service";
  standby = on.units."flurry-standby.service";
  socket = on.units."flurry.socket";
in
[
  (is "off, it changes nothing" (asked off) {
    units = { };
    services = { };
    check = "";
    nix = {
      substituters = [ "https://cache.nixos.org/" ];
      trusted-public-keys = [ central ];
      require-sigs = true;
    };
    firewall = {
      allowedTCPPorts = [ ];
      allowedUDPPorts = [ ];
    };
    groups = [ ];
    packages = [ ];
    etc = [ ];
    warnings = [ ];
    failures = [ ];
  })
  (is "settings alone change nothing" (asked (machine { services.flurry.settings.limits.upload = "1MB/s"; })) (asked off))

  (is "on, it opens no port" on.firewall {
    allowedTCPPorts = [ ];
    allowedUDPPorts = [ ];
  })
  (is "but says that neighbours are kept out" (builtins.length on.warnings) 1)
  (is "the warning names both remedies" (map (w: lib.hasInfix "openFirewall = true" w && lib.hasInfix "peers.listen = [ ]" w) on.warnings) [ true ])
  (is "openFirewall opens exactly what neighbours need" (flurry { openFirewall = true; }).firewall {
    allowedTCPPorts = [ 6491 ];
    allowedUDPPorts = [
      6491
      5353
    ];
  })
  (is "and silences the warning" (flurry { openFirewall = true; }).warnings [ ])
  (is "no warning without a firewall" (machine {
    services.flurry.enable = true;
    networking.firewall.enable = false;
  }).warnings [ ])
  (is "no warning where the port is open already" (machine {
    services.flurry.enable = true;
    networking.firewall.interfaces.lan.allowedTCPPorts = [ 6491 ];
  }).warnings [ ])
  (is "no warning where nothing is shared" (withSettings { peers.listen = [ ]; }).warnings [ ])
  (is "another peer port is the one that is opened"
    (flurry {
      openFirewall = true;
      settings.peers = {
        listen = [ "[::]:7000" ];
        mdns = false;
      };
    }).firewall
    {
      allowedTCPPorts = [ 7000 ];
      allowedUDPPorts = [ 7000 ];
    }
  )

  (is "Nix asks the agent first and the central cache, once, behind" on.nix.substituters [
    "http://127.0.0.1:6490"
    "https://cache.nixos.org/"
  ])
  (is "signatures stay required" on.nix.require-sigs true)
  (is "no key is added to the central cache's" on.nix.trusted-public-keys [ central ])
  (is "Nix trusts the keys of further upstreams, each once"
    (withSettings {
      upstream = [
        {
          url = "https://cache.nixos.org";
          keys = [ central ];
        }
        office
      ];
    }).nix.trusted-public-keys
    (office.keys ++ [ central ])
  )
  (is "a user's own substituters stay" (machine {
    services.flurry.enable = true;
    nix.settings.substituters = [ "https://mine.example" ];
  }).nix.substituters [
    "https://mine.example"
    "http://127.0.0.1:6490"
    "https://cache.nixos.org/"
  ])
  (is "configureNix = false leaves Nix alone" (flurry { configureNix = false; }).nix off.nix)
  (is "a wildcard address is asked on localhost" (builtins.head (withSettings { substituter.listen = [ ":7001" ]; }).nix.substituters) "http://127.0.0.1:7001")
  (is "an IPv6 address keeps its brackets" (builtins.head (withSettings { substituter.listen = [ "[::1]:6490" ]; }).nix.substituters) "http://[::1]:6490")

  (is "the socket is where Nix asks" (has socket "ListenStream=127.0.0.1:6490") true)
  (is "a wildcard is a bare port to systemd" (has (withSettings { substituter.listen = [ ":7001" ]; }).units."flurry.socket" "ListenStream=7001") true)
  (is "nothing takes the socket down" (map (has service) [ "StartLimitIntervalSec=0" "Restart=always" ] ++ [ (has socket "TriggerLimitIntervalSec=0") ]) [ true true true ])
  (is "the socket carries the name that the agent looks for" (has socket "FileDescriptorName=substituter") true)
  (is "agent and stand-in share the socket, and go when it goes" (map (u: has u "Sockets=flurry.socket" && has u "Requires=flurry.socket") [ service standby ]) [ true true ])
  (is "a switch restarts both without stopping them first" on.services {
    flurry.stopIfChanged = false;
    flurry-standby.stopIfChanged = false;
  })
  (is "it waits for the network but does not need it" (has service "Wants=network-online.target" && !(lib.hasInfix "Requires=network" service)) true)
  (is "systemd watches it" (map (has service) [ "Type=notify" "NotifyAccess=main" "WatchdogSec=30s" ]) [ true true true ])
  (is "memory and tasks are bounded" (map (t: lib.hasInfix t service) [ "MemoryMax=" "TasksMax=" ]) [ true true ])
  (is "older systemd gets no key it does not know" (lib.hasInfix "RestartSteps" service) false)
  (is "newer systemd slows restarts down" (lib.hasInfix "RestartSteps"
    (import ./machine.nix {
      inherit lib;
      systemdVersion = "258";
      configuration.services.flurry.enable = true;
    }).units."flurry.service"
  ) true)

  (is "secrets come as credentials" (
    let
      m = withSettings {
        peers.secret_file = "/run/secrets/group";
        upstream = [ (office // { headers_file = "/run/secrets/headers"; }) ];
      };
      u = m.units."flurry.service";
    in
    [
      (has u "LoadCredential=group-secret:/run/secrets/group")
      (has u "LoadCredential=upstream-0-headers:/run/secrets/headers")
      (lib.hasInfix "/run/secrets" m.toml)
      (lib.hasInfix "/run/credentials/flurry.service/group-secret" m.toml)
    ]
  ) [ true true false true ])
  (is "the configuration is checked while it is built" (lib.hasInfix "flurry check-config checked.toml" on.check) true)
  (is "keys the module never heard of reach the agent" (lib.hasInfix "upload = \"50Mbit/s\"" (withSettings { limits.upload = "50Mbit/s"; }).toml) true)
  (is "an empty list of upstreams is left out" (lib.hasInfix "upstream" on.toml) false)

  (refused "no address for Nix" (withSettings { substituter.listen = [ ]; }) "substituter.listen" "Leave it out")
  (refused "a host name for the socket" (withSettings { substituter.listen = [ "localhost:6490" ]; }) "substituter.listen" "127.0.0.1:6490")
  (refused "an address without port" (withSettings { substituter.listen = [ "127.0.0.1" ]; }) "substituter.listen" "127.0.0.1:6490")
  (refused "peers without port" (withSettings { peers.listen = [ "eth0" ]; }) "peers.listen" ":6491")
  (refused "one port twice" (withSettings { peers.listen = [ ":6490" ]; }) "peers.listen" "another")
  (refused "a state directory" (withSettings { state.dir = "/srv"; }) "state.dir" "Remove it")
  (refused "a secret in the store" (withSettings { peers.secret_file = "${builtins.storeDir}/x"; }) "Nix store" "outside")
  (refused "a relative secret" (withSettings { peers.secret_file = "secret"; }) "secret" "from the root")
  (refused "an upstream without keys" (withSettings { upstream = [ { url = "https://cache.office.example"; } ]; }) "upstream" "Add keys")
  (is "the central cache needs no keys" (withSettings { upstream = [ { url = "https://cache.nixos.org/"; } ]; }).failures [ ])
  (is "a priority behind the central cache's is warned of" (builtins.length (flurry {
    openFirewall = true;
    settings.substituter.priority = 50;
  }).warnings) 1)

  (fails "a switch that is no boolean" (asked (machine { services.flurry.enable = "yes"; })))
  (fails "addresses that are no strings" (asked (withSettings { substituter.listen = [ 6490 ]; })))
  (fails "a priority of 0" (asked (withSettings { substituter.priority = 0; })))
  (fails "an option that does not exist" (machine { services.flurry.enabled = true; }).nix)

  (is "every option has a type, a description and a default, most an example" (lib.filterAttrs (
    n: o: !(o ? type && o ? description && o ? default) || !(o ? example || n == "package")
  ) options) { })
]
