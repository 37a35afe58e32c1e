# The image of the agent: one static binary beside iptables for both backends, nft and legacy.
# Both images can be replaced, for example by ones from a registry of your own. BASE_IMAGE needs iptables and CA
# certificates, or apt to install what is missing. Say which version it is: --build-arg VERSION="$(git describe --tags
# --always --dirty)".
ARG BUILD_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

# The compiler runs on the machine's own platform, whatever --platform the image is for.
FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# Filled in from --platform; empty, the machine's own.
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
RUN export CGO_ENABLED=0 GOOS="${TARGETOS}" GOARCH="${TARGETARCH}" && \
    go build -trimpath -ldflags="-s -w -X 'main.release=${VERSION}'" -o /out/podrole ./cmd/agent && \
    go build -trimpath -ldflags="-s -w" -o /out/podrole-probe ./cmd/probe

FROM ${BASE_IMAGE}
RUN command -v iptables-nft-restore && command -v iptables-legacy-restore && test -s /etc/ssl/certs/ca-certificates.crt || \
    { apt-get update && apt-get install -y --no-install-recommends ca-certificates iptables && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /out/ /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/podrole"]
CMD ["run"]
