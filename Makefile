# What users and CI run; INTERFACE.md is the contract. Everything real is in scripts/.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
FUZZTIME ?= 20s
export CGO_ENABLED ?= 0

.PHONY: build run demo test bench bench-swarm bench-site bench-alone bench-misses lint cross fuzz soak vulncheck clean matrix

# flurry-standby is for systemd: it answers Nix where the agent cannot (docs/install.md).
build:
	go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/flurry ./cmd/flurry-standby

run: build
	bin/flurry agent

demo: build
	scripts/demo

test:
	scripts/test

# Flurry against its baselines in the same run, by turns; ratios last. ROW=narinfo,nars runs those alone,
# ROUNDS=N, QUICK=1 for a look; rows: docs/performance.md.
bench: build
	scripts/bench $(if $(ROW),-row $(ROW)) $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(QUICK),-quick)

# One site, one download: N=8 RATE=50 (Mbit/s) and more options in ARGS; see scripts/bench-site --help.
bench-site: build
	scripts/bench-site $(or $(N),8) --rate $(or $(RATE),50) $(ARGS)

# One machine alone, or beside bad neighbours, against the central cache itself, in pairs: ARGS="--case slow".
bench-alone: build
	scripts/bench-alone $(ARGS)

# Packets to 24 neighbours for 10,000 narinfos that nobody has.
bench-misses: build
	scripts/bench-misses $(ARGS)

# A closure from the central cache alone and with agents of the internet, by turns: RATE=50 (Mbit/s), ROUNDS=15 and
# more options in ARGS; see scripts/bench-internet --help.
.PHONY: bench-internet
bench-internet: build
	scripts/bench-internet --rounds $(or $(ROUNDS),15) --rate $(or $(RATE),50) $(ARGS)

# Every fault there is a name for, as a peer and as an upstream, against the built agent and real Nix;
# writes docs/faults.md. ONLY=dribble runs those rows alone, into a file of its own. About ten minutes.
matrix: build
	scripts/matrix $(ONLY)

# One NAR from many seeders against one, with and without liars.
bench-swarm:
	scripts/bench-swarm

lint:
	scripts/lint

# go build and go vet for Linux and macOS on ARM, and macOS on Intel.
cross:
	scripts/cross-build

# Every fuzz target in turn; a target without seeds fails.
fuzz:
	scripts/fuzz $(FUZZTIME)

# Three machines with real Nix while agents are killed and links cut; SOAK=30m, SOAK_SEED=… repeats one.
soak: build
	scripts/soak

# Two hundred agents on a virtual clock, one bad time per seed; SIM_SEED=n replays one.
SEEDS ?= 20
.PHONY: sim bench-attack
sim:
	SIM_SEEDS=$(SEEDS) go test -count=1 -v -timeout 12h -run ASiteSurvives ./test/sim

# Nodes of the internet's hash table on a virtual clock: N= (a thousand take long), SEED=, KEYS= of the one that has many;
# before it two minutes of real connections in a network namespace, for what the simulation leaves out (docs/scale.md).
.PHONY: sim-dht
sim-dht:
	go test -c -o bin/simdht.test ./test/simdht
	unshare -n sh -c 'ip link set lo up && DHT_COST=1 bin/simdht.test -test.v -test.run WhatAConnectionCosts'
	DHT_N=$(or $(N),100) DHT_SEED=$(or $(SEED),1) DHT_KEYS=$(KEYS) GOGC=400 bin/simdht.test -test.v -test.timeout 12h -test.run TheTableFinds

# A thousand hostile connections against the built agent: its memory, and whether Nix is still served.
bench-attack: build
	scripts/bench-attack

# Known faults of what is compiled in; needs the Go vulnerability database.
vulncheck:
	scripts/vulncheck

clean:
	rm -rf bin
