# The options of NixOS that the module defines, with nixpkgs' defaults where they matter: the central
# cache comes from a definition with mkAfter, as in nixos/modules/config/nix.nix.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  list = t: mkOption { type = types.listOf t; default = [ ]; };
  free = mkOption { type = types.attrsOf types.anything; default = { }; };
  unit = types.submodule {
    options = {
      description = mkOption { type = types.str; default = ""; };
      documentation = list types.str;
      wantedBy = list types.str;
      requires = list types.str;
      wants = list types.str;
      after = list types.str;
      listenStreams = list types.str;
      stopIfChanged = mkOption { type = types.bool; default = true; };
      startLimitIntervalSec = mkOption { type = types.nullOr types.int; default = null; };
      environment = free;
      serviceConfig = free;
      socketConfig = free;
    };
  };
  ports = list types.int;
in
{
  options = {
    assertions = list types.raw;
    warnings = list types.str;
    environment.systemPackages = list types.package;
    environment.etc = free;
    users.groups = free;
    nix.settings.substituters = list types.str;
    nix.settings.trusted-public-keys = list types.str;
    nix.settings.require-sigs = mkOption { type = types.bool; default = true; };
    networking.firewall = {
      enable = mkOption { type = types.bool; default = true; };
      allowedTCPPorts = ports;
      allowedUDPPorts = ports;
      interfaces = free;
    };
    systemd.package = mkOption { type = types.package; default = pkgs.systemd; };
    systemd.services = mkOption { type = types.attrsOf unit; default = { }; };
    systemd.sockets = mkOption { type = types.attrsOf unit; default = { }; };
  };
  config.nix.settings = {
    substituters = lib.mkAfter [ "https://cache.nixos.org/" ];
    trusted-public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
  };
}
