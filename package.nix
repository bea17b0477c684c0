# The agent, built from this tree. `pkgs.callPackage ./package.nix { }`, or the flake's package.
{
  lib,
  buildGoModule,
  installShellFiles,
  stdenv,
  xz,
  # Stamped into `flurry version`.
  version ? "0.1.0",
  commit ? "unknown",
}:
let
  source = import ./nixos-module/source.nix { inherit lib; };
in
buildGoModule {
  pname = "flurry";
  inherit version;
  src = source;

  # Of what `go mod vendor` writes; `scripts/vendor-hash` computes it, and a test compares.
  vendorHash = "sha256-iHslGyf5Mu+0o2Ilr7JHjVMcupwwX0tgQkg05PbwYig=";

  subPackages = [
    "cmd/flurry"
    "cmd/flurry-standby"
  ];
  env.CGO_ENABLED = 0;
  ldflags = [
    "-s"
    "-w"
    "-X main.version=${version}"
    "-X main.commit=${commit}"
  ];

  # The xz program beats every decoder in Go; its place is fixed here, since PATH is not consulted.
  postPatch = ''
    substituteInPlace upstream/config.go --replace-fail '"/usr/bin/xz"' '"${lib.getExe' xz "xz"}", "/usr/bin/xz"'
  '';

  nativeBuildInputs = [ installShellFiles ];

  # Tests of all packages, not only of the two that are built, but for those that need Nix, nginx or the
  # whole tree; `make test` has them all.
  doCheck = true;
  checkFlags = [ "-short" ];
  preCheck = "unset subPackages";
  excludedPackages = [
    "internal/archtest"
    "store"
    "upstream"
  ];

  postInstall =
    lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
      export HOME=$TMPDIR
      $out/bin/flurry gen man man
      installManPage man/*
      $out/bin/flurry gen completion completion
      installShellCompletion --cmd flurry \
        --bash completion/flurry.bash --zsh completion/_flurry --fish completion/flurry.fish
    ''
    + lib.optionalString stdenv.hostPlatform.isLinux ''
      install -Dm 644 -t $out/lib/systemd/system contrib/systemd/flurry*.service contrib/systemd/flurry.socket
      substituteInPlace $out/lib/systemd/system/*.service --replace-fail /usr/local/bin $out/bin
    '';

  meta = {
    description = "Peer-to-peer agent for Nix stores: takes store paths from neighbours and shares them";
    homepage = "https://github.com/flurry-nix/flurry";
    license = lib.licenses.mit;
    mainProgram = "flurry";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
  };
}
