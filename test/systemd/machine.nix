# A NixOS configuration with services.flurry, evaluated: everything the module asks of the system, as
# data and as texts.
{
  lib ? import ./standin/lib.nix,
  package ? "/usr/lib/flurry",
  systemdVersion ? "252",
  configuration ? { },
}:
let
  pkgs = (import ./standin/pkgs.nix { inherit lib package; }) // {
    systemd = {
      type = "derivation";
      name = "systemd";
      outPath = "/usr";
      version = systemdVersion;
    };
  };
  evaluated = lib.evalModules {
    specialArgs = { inherit pkgs; };
    modules = [
      ./standin/nixos.nix
      ../../nixos-module
      configuration
    ];
  };
  inherit (evaluated) config;

  inherit (import ../../nixos-module/render.nix { inherit lib; }) service socket;
  file = config.environment.etc."flurry/config.toml".source;
in
{
  inherit evaluated;
  units =
    builtins.listToAttrs (
      lib.mapAttrsToList (n: u: { name = "${n}.service"; value = service u; }) config.systemd.services
      ++ lib.mapAttrsToList (n: u: { name = "${n}.socket"; value = socket u; }) config.systemd.sockets
    );
  services = lib.mapAttrs (_: u: { inherit (u) stopIfChanged; }) config.systemd.services;
  # The check that building the system runs, and what it checks.
  check = lib.optionalString (config.systemd.services != { }) file.script;
  toml = lib.optionalString (config.systemd.services != { }) file.raw;
  nix = config.nix.settings;
  firewall = { inherit (config.networking.firewall) allowedTCPPorts allowedUDPPorts; };
  groups = builtins.attrNames config.users.groups;
  packages = map (p: p.name) config.environment.systemPackages;
  etc = builtins.attrNames config.environment.etc;
  inherit (config) warnings;
  failures = map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
}
