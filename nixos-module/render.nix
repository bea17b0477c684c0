# Unit files as text, from the attribute sets that NixOS' systemd.services and systemd.sockets take: for
# the plain units in contrib/systemd, and for the tests. NixOS renders its own.
{ lib }:
let
  line =
    name: value:
    if builtins.isList value then
      lib.concatMapStrings (line name) value
    else if builtins.isBool value then
      "${name}=${if value then "true" else "false"}\n"
    else
      "${name}=${toString value}\n";
  section = name: attrs: "[${name}]\n${lib.concatStringsSep "" (lib.mapAttrsToList line attrs)}";
  joined = lib.concatStringsSep " ";
  head =
    u:
    section "Unit" (
      lib.filterAttrs (_: v: v != "") {
        Description = u.description;
        Documentation = joined u.documentation;
        Requires = joined u.requires;
        Wants = joined u.wants;
        After = joined u.after;
      }
      // lib.optionalAttrs (u.startLimitIntervalSec != null) { StartLimitIntervalSec = u.startLimitIntervalSec; }
    );
  foot = u: section "Install" { WantedBy = joined u.wantedBy; };
  service =
    u:
    lib.concatStringsSep "\n" [
      (head u)
      (section "Service" (u.serviceConfig // lib.optionalAttrs (u.environment != { }) {
        Environment = lib.mapAttrsToList (n: v: "${n}=${v}") u.environment;
      }))
      (foot u)
    ];
  socket =
    u:
    lib.concatStringsSep "\n" [
      (head u)
      (section "Socket" (u.socketConfig // { ListenStream = u.listenStreams; }))
      (foot u)
    ];
in
{
  inherit service socket;
}
