# podrole. `make` lists what there is to do.
SHELL      := /bin/bash
GO         ?= go
TOOL       := $(GO) tool -modfile=tools/go.mod
FUZZTIME   ?= 5s
IMAGE      ?= podrole:dev
ROOT       := $(filter 0,$(shell id -u))

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/podrole, static
	@echo "== build"
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/podrole ./cmd/agent

.PHONY: test
test: deps lint manifests unit $(if $(ROOT),conformance e2e,unprivileged) fuzz ## everything that can be checked here, with the race detector

.PHONY: unprivileged
unprivileged:
	@echo "== conformance and e2e are left out: run as root to have them"

.PHONY: unit
unit: deps ## all Go tests; those that need network namespaces run as root only
	@echo "== tests$(if $(ROOT),, (network namespace tests are skipped: run as root to have them))"
	$(GO) test -race -timeout 20m ./...

.PHONY: conformance
conformance: deps ## real SDKs of all ages in the pods of a node in a box (root; some minutes the first time)
	@mkdir -p bin
	@echo "== build (some minutes the first time)"
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/podrole ./cmd/agent
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/conformance ./e2e/conformance
	@bin/conformance

.PHONY: e2e
e2e: deps ## a Kubernetes cluster of two nodes, the image, kubectl apply -k (root; twenty minutes the first time)
	@SYSTEMD_OFFLINE=1 ./tools/install buildah:buildah containerd:containerd containernetworking-plugins:/usr/lib/cni/ptp \
	  debootstrap:debootstrap runc:runc util-linux:nsenter procps:pgrep
	@mkdir -p bin
	@echo "== build (some minutes the first time)"
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/cluster ./e2e/cluster
	@bin/cluster

.PHONY: fuzz
fuzz: ## fuzz each target for FUZZTIME (5s)
	@GO="$(GO)" FUZZTIME="$(FUZZTIME)" ./tools/fuzz

.PHONY: lint
lint: ## formatting, vet, modern Go, staticcheck, tidy go.mod
	@echo "== lint"
	@unformatted=$$(gofmt -l bench cmd docs e2e internal manifests pkg); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) fix -diff ./...
	$(TOOL) staticcheck ./...
	cd e2e/systems/clients && $(GO) vet ./... && $(GO) mod tidy -diff
	$(GO) mod tidy -diff

.PHONY: manifests
manifests: ## render the manifests as kubectl apply -k does
	@echo "== manifests"
	@set -e; for dir in $$(dirname $$(find manifests -name kustomization.yaml)); do \
	  echo "-- $$dir"; $(TOOL) kustomize build $$dir >/dev/null; \
	done

.PHONY: demo
demo: deps ## a node in a box: three pods, ten rotations, beside in-line STS (root; under five minutes)
	@./e2e/demo/install
	@mkdir -p bin
	@echo "== build (some minutes the first time)"
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/podrole ./cmd/agent
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/demo ./e2e/demo
	@bin/demo

.PHONY: bench
bench: deps ## the project's figures (root), also in bench/results.json
	@mkdir -p bin
	@echo "== build (some minutes the first time)"
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/podrole ./cmd/agent
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/bench ./bench
	@bin/bench -json bench/results.json

.PHONY: vuln
vuln: ## known vulnerabilities in what we import (needs the Go vulnerability database)
	$(TOOL) govulncheck ./...

.PHONY: image
image: ## build the container image IMAGE (podrole:dev)
	DOCKER_BUILDKIT=1 docker build --build-arg VERSION="$$(git describe --tags --always --dirty)" -t $(IMAGE) .

.PHONY: deps
deps: ## install what tests need and is missing (Debian and Ubuntu)
	@./tools/install iptables:iptables-nft-save iptables:iptables-legacy-save nftables:nft iproute2:ip \
	  awscli:/usr/bin/aws

.PHONY: docs
docs: ## write docs/flags.md
	$(GO) test ./docs -run TestFlagsReference -args -write

.PHONY: clean
clean: ## remove what was built
	rm -rf bin bench/results.json
