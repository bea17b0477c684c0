# Four NixOS machines: a central cache, an agent that fills from it, a fresh one that must do with its
# neighbour, and one whose agent restarts while Nix copies. Needs KVM; run by `nix flake check`.
{ pkgs, module }:
let
  inherit (pkgs) lib;

  # A closure that no machine has and no machine can build: NARs of a few sizes, one of them large.
  closure = pkgs.runCommand "flurry-test-closure" { } ''
    mkdir $out
    head -c 500000000 /dev/urandom >$out/large
    for i in $(seq 50); do echo $i >$out/$i; done
  '';
  # Fixed, public, and of no use elsewhere.
  keys = pkgs.runCommand "flurry-test-keys" { nativeBuildInputs = [ pkgs.nix ]; } ''
    mkdir $out
    nix-store --generate-binary-cache-key test-1 $out/secret $out/public
  '';
  cache = pkgs.runCommand "flurry-test-cache" { nativeBuildInputs = [ pkgs.nix ]; } ''
    export HOME=$TMPDIR NIX_STATE_DIR=$TMPDIR/state NIX_REMOTE=
    nix-store --load-db <${pkgs.closureInfo { rootPaths = [ closure ]; }}/registration
    nix --extra-experimental-features nix-command copy --no-check-sigs \
      --to "file://$out?compression=none&secret-key=${keys}/secret" ${closure}
  '';
  publicKey = builtins.readFile "${keys}/public";

  client = {
    imports = [ module ];
    virtualisation.writableStore = true;
    virtualisation.diskSize = 4096;
    virtualisation.additionalPaths = [ ];
    nix.settings.substituters = lib.mkForce [ "http://127.0.0.1:6490" ];
    services.flurry = {
      enable = true;
      openFirewall = true;
      settings = {
        upstream = [
          {
            url = "http://upstream";
            keys = [ publicKey ];
            public = true;
          }
        ];
        peers.networks = [ "192.168.0.0/16" ];
      };
    };
  };
in
pkgs.testers.runNixOSTest {
  name = "flurry";
  nodes = {
    upstream = {
      networking.firewall.allowedTCPPorts = [ 80 ];
      services.nginx = {
        enable = true;
        virtualHosts.upstream.root = cache;
      };
    };
    seeder = client;
    fresh = client;
    switching = {
      imports = [ client ];
      specialisation.other.configuration.services.flurry.settings.limits.connections = 100;
    };
  };
  testScript = ''
    path = "${builtins.unsafeDiscardStringContext closure}"

    start_all()
    for m in [seeder, fresh, switching]:
        m.wait_for_unit("flurry.service")
        m.wait_for_open_port(6490)
    upstream.wait_for_unit("nginx.service")

    with subtest("hardening is active"):
        score = seeder.succeed("systemd-analyze security flurry.service | tail -n 1")
        print(score)
        seeder.succeed("systemd-analyze security --threshold=15 flurry.service")

    with subtest("the first fills from the central cache"):
        seeder.succeed(f"nix-store -r {path}")

    with subtest("with the central cache gone, a fresh machine fills from its neighbour"):
        upstream.shutdown()
        fresh.wait_until_succeeds("flurry peers --json | grep -q '\"paths\": *[1-9]'")
        fresh.succeed(f"nix-store -r {path}")
        fresh.succeed(f"nix-store --verify-path {path}")

    with subtest("a switch that restarts the agent does not disturb Nix"):
        switching.wait_until_succeeds("flurry peers --json | grep -q '\"paths\": *[1-9]'")
        before = switching.succeed("systemctl show -P MainPID flurry")
        switching.execute(f"(nix-store -r {path}; echo $? >/tmp/status) >/tmp/log 2>&1 &")
        switching.succeed("/run/current-system/specialisation/other/bin/switch-to-configuration test")
        assert switching.succeed("systemctl show -P MainPID flurry") != before, "the switch did not restart the agent"
        switching.wait_for_file("/tmp/status")
        assert switching.succeed("cat /tmp/status").strip() == "0", switching.succeed("cat /tmp/log")
        switching.succeed(f"nix-store --verify-path {path}")
  '';
}
