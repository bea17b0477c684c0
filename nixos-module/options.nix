# The options that all three modules (NixOS, nix-darwin, home-manager) have, and what follows from the
# settings. `settings` is the agent's TOML file as it is; declared here is only what a module reads.
{
  lib,
  pkgs,
  # Where the module is used: "nixos", "darwin" or "home".
  platform,
}:
let
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };

  centralKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

  # A secret's path. A Nix path literal would be copied into the store, where everybody may read it.
  secretPath = types.nullOr types.str;

  upstreamType = types.submodule {
    freeformType = toml.type;
    options = {
      url = mkOption {
        type = types.str;
        example = "https://cache.example.org";
        description = "Address of the central cache, http or https.";
      };
      keys = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
        description = ''
          Public keys whose signatures count, in Nix's notation. Required, except for cache.nixos.org.
          With {option}`services.flurry.configureNix` Nix trusts them too.
        '';
      };
      headers_file = mkOption {
        type = secretPath;
        default = null;
        example = "/run/secrets/cache-headers";
        description = ''
          File with headers for every request to this cache, one `Name: value` a line, such as an
          Authorization. A string, not a Nix path: it must stay out of the store.
        '';
      };
      netrc_file = mkOption {
        type = secretPath;
        default = null;
        example = "/etc/nix/netrc";
        description = ''
          File with name and password for this cache's host, in netrc's form, as Nix's own `netrc-file`. A
          string, not a Nix path: it must stay out of the store.
        '';
      };
    };
  };

  settingsType = types.submodule {
    freeformType = toml.type;
    options = {
      substituter.listen = mkOption {
        type = types.listOf types.str;
        default = [ "127.0.0.1:6490" ];
        example = [ "[::1]:6490" ];
        description = ''
          Addresses, `host:port`, on which Nix is answered. Nix remembers a cache by its address for
          weeks: change it seldom.
        '';
      };
      substituter.priority = mkOption {
        type = types.ints.between 1 2147483647;
        default = 30;
        example = 35;
        description = "Place among Nix's substituters. The lowest is asked first; cache.nixos.org has 40.";
      };
      store.dir = mkOption {
        type = types.str;
        default = "/nix/store";
        example = "/nix/store";
        description = "Directory of the Nix store.";
      };
      peers.listen = mkOption {
        type = types.listOf types.str;
        default = [ ":6491" ];
        example = [ ];
        description = ''
          Addresses, `host:port`, for other agents; each means TCP and UDP. With none, this machine takes
          from others but nobody can ask it.
        '';
      };
      peers.mdns = mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Find agents on the local network by multicast DNS, and be found.";
      };
      peers.secret_file = mkOption {
        type = secretPath;
        default = null;
        example = "/run/secrets/flurry-group";
        description = ''
          File with the group secret. Peers that prove they know it also get paths of caches that are not
          public. A string, not a Nix path: it must stay out of the store.
        '';
      };
      upstream = mkOption {
        type = types.listOf upstreamType;
        default = [ ];
        example = lib.literalExpression ''
          [
            { url = "https://cache.nixos.org"; }
            {
              url = "https://cache.example.org";
              keys = [ "cache.example.org-1:…" ];
              headers_file = "/run/secrets/cache-headers";
            }
          ]
        '';
        description = "Central caches, in order of preference. With none, cache.nixos.org.";
      };
    };
  };
in
{
  options = {
    enable = lib.mkEnableOption "Flurry, which takes Nix store paths from neighbours and shares them";

    package = lib.mkPackageOption pkgs "flurry" { };

    settings = mkOption {
      type = settingsType;
      default = { };
      example = lib.literalExpression ''
        {
          limits.upload = "50Mbit/s";
          peers.static = [ "cache.office.example:6491" ];
        }
      '';
      description = ''
        Configuration of the agent: every key of {manpage}`flurry.toml(5)`. It is checked when the system
        is built. The file ends up in the world-readable store, so it has no key that holds a secret.
      '';
    };

    configureNix = mkOption {
      type = types.bool;
      default = platform != "home";
      example = false;
      description = ''
        Whether to make the agent a substituter of Nix, before the ones there are, and to trust the keys of
        {option}`services.flurry.settings.upstream`. Signatures stay required.
      ''
      + lib.optionalString (platform == "home") ''
        In a user's configuration only a trusted user's substituters count.
      '';
    };
  };

  # What follows from `cfg`, the values of the options above.
  derive =
    cfg:
    let
      s = cfg.settings;

      # credentialsDir + name for secrets that the service manager hands over, or the path itself.
      withSecrets =
        place:
        s
        // {
          peers = s.peers // {
            secret_file = if s.peers.secret_file == null then null else place "group-secret" s.peers.secret_file;
          };
          upstream = lib.imap0 (
            i: u: u // lib.optionalAttrs (u.keys == [ ]) { keys = null; } // {
              headers_file = if u.headers_file == null then null else place "upstream-${toString i}-headers" u.headers_file;
              netrc_file = if u.netrc_file == null then null else place "upstream-${toString i}-netrc" u.netrc_file;
            }
          ) s.upstream;
        };

      # TOML has no null. The agent takes empty lists of caches or keys for mistakes, rather than for "the
      # default".
      clean =
        v:
        if builtins.isAttrs v && !lib.isDerivation v then
          lib.mapAttrs (_: clean) (lib.filterAttrs (_: x: x != null) v)
        else if builtins.isList v then
          map clean v
        else
          v;
      cleaned =
        place:
        let
          all = clean (withSecrets place);
        in
        if all.upstream == [ ] then removeAttrs all [ "upstream" ] else all;
    in
    rec {
      port = address: lib.last (lib.splitString ":" address);
      host = address: lib.removeSuffix (":" + port address) address;
      bareHost = address: lib.removePrefix "[" (lib.removeSuffix "]" (host address));

      # An address of the substituter as Nix on this machine reaches it.
      url =
        let
          address = builtins.head s.substituter.listen;
          anywhere = lib.elem (host address) [
            ""
            "0.0.0.0"
            "[::]"
            "localhost"
          ];
        in
        "http://${if anywhere then "127.0.0.1" else host address}:${port address}";

      # Nix's own default has the central cache's key.
      extraKeys = lib.unique (lib.filter (k: k != centralKey) (lib.concatMap (u: u.keys) s.upstream));

      peerPorts = lib.unique (map (a: lib.toInt (port a)) s.peers.listen);
      sharing = s.peers.listen != [ ];

      # name → path of every secret.
      secrets =
        lib.optionalAttrs (s.peers.secret_file != null) { group-secret = s.peers.secret_file; }
        // builtins.listToAttrs (
          lib.concatLists (
            lib.imap0 (
              i: u:
              lib.optional (u.headers_file != null) {
                name = "upstream-${toString i}-headers";
                value = u.headers_file;
              }
              ++ lib.optional (u.netrc_file != null) {
                name = "upstream-${toString i}-netrc";
                value = u.netrc_file;
              }
            ) s.upstream
          )
        );

      # The configuration file. It is checked while it is built, where this machine can run the agent;
      # there the secrets are not at hand, so an empty file stands for each.
      configFile =
        place:
        let
          raw = toml.generate "flurry-unchecked.toml" (cleaned place);
          places = lib.mapAttrsToList place secrets;
        in
        if !(pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) then
          raw
        else
          pkgs.runCommand "flurry.toml" { inherit raw; preferLocalBuild = true; } ''
            install -m 600 /dev/null secret
            cp $raw checked.toml
            chmod u+w checked.toml
            ${lib.concatMapStrings (p: ''
              substituteInPlace checked.toml --replace-fail ${lib.escapeShellArg p} "$PWD/secret"
            '') places}
            STATE_DIRECTORY=$PWD ${lib.getExe cfg.package} check-config checked.toml
            cp $raw $out
          '';

      assertions =
        let
          listen = s.substituter.listen;
          numeric =
            a: builtins.match "([0-9.]*|\\[[0-9a-fA-F:.]+])" (host a) != null && builtins.match "[0-9]+" (port a) != null;
          wrong = lib.filter (a: !numeric a) listen;
          noPort = lib.filter (a: builtins.match "[0-9]+" (port a) == null || !(lib.hasInfix ":" a)) s.peers.listen;
          stored = lib.filter (p: lib.hasPrefix builtins.storeDir p) (builtins.attrValues secrets);
          relative = lib.filter (p: !(lib.hasPrefix "/" p)) (builtins.attrValues secrets);
          keyless = lib.filter (u: u.keys == [ ] && builtins.match "https?://cache\\.nixos\\.org(:[0-9]+)?/*" u.url == null) s.upstream;
        in
        [
          {
            assertion = listen != [ ];
            message = "services.flurry.settings.substituter.listen is empty, so Nix could not reach the agent. Leave it out to have 127.0.0.1:6490.";
          }
          {
            assertion = wrong == [ ];
            message = "services.flurry.settings.substituter.listen: ${toString wrong}: not an IP address and a port. Write \"127.0.0.1:6490\" or \"[::1]:6490\": the socket is opened before names can be looked up.";
          }
          {
            assertion = noPort == [ ];
            message = "services.flurry.settings.peers.listen: ${toString noPort}: not host:port. Write \":6491\".";
          }
          {
            assertion = lib.intersectLists (map port listen) (map port s.peers.listen) == [ ];
            message = "services.flurry.settings: substituter.listen and peers.listen have the same port. Give one of them another.";
          }
          {
            assertion = !(s ? state);
            message = "services.flurry.settings.state.dir cannot be set: the service manager provides the directory. Remove it.";
          }
          {
            assertion = stored == [ ];
            message = "services.flurry: the secret ${toString stored} is in the Nix store, where everybody can read it. Name a file outside as a string, such as \"/run/secrets/flurry\".";
          }
          {
            assertion = relative == [ ];
            message = "services.flurry: the secret ${toString relative} is not an absolute path. Write it from the root.";
          }
          {
            assertion = keyless == [ ];
            message = "services.flurry.settings.upstream: no keys for ${toString (map (u: u.url) keyless)}, so nothing from there could be trusted. Add keys = [ \"name:base64\" ], as in nix.conf's trusted-public-keys.";
          }
        ];

      warnings = lib.optional (s.substituter.priority >= 40) ''
        services.flurry.settings.substituter.priority is ${toString s.substituter.priority}: Nix asks
        cache.nixos.org, which has 40, first, so neighbours are hardly ever asked. Use a number below 40.
      '';
    };
}
