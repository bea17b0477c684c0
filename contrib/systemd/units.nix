# The plain units beside this file, as texts by name. `scripts/systemd-units` writes them; a test compares.
{
  lib ? import ../../test/systemd/standin/lib.nix,
}:
let
  unit = import ../../nixos-module/unit.nix {
    inherit lib;
    agent = "/usr/local/bin/flurry agent";
    standby = "/usr/local/bin/flurry-standby";
    credentials = { };
    hasRestartSteps = false; # Debian 12 has systemd 252
  };
  render = import ../../nixos-module/render.nix { inherit lib; };
  units = unit.units [ "127.0.0.1:6490" ];
  complete =
    u:
    {
      documentation = [ ];
      requires = [ ];
      wants = [ ];
      after = [ ];
      startLimitIntervalSec = null;
      environment = { };
    }
    // u;
  named = suffix: f: lib.mapAttrsToList (n: u: { name = "${n}.${suffix}"; value = f (complete u); });
in
builtins.listToAttrs (named "service" render.service units.services ++ named "socket" render.socket units.sockets)
