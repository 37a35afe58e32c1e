# syntax=docker/dockerfile:1
# The image of the agent: one static binary beside iptables for both backends, nft and legacy.
# Both images can be replaced, for example by ones from a registry of your own. BASE_IMAGE needs iptables and CA
# certificates, or apt to install what is missing.
ARG BUILD_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/podrole ./cmd/agent && \
    CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/podrole-probe ./cmd/probe

FROM ${BASE_IMAGE}
RUN command -v iptables-nft-restore && command -v iptables-legacy-restore && test -s /etc/ssl/certs/ca-certificates.crt || \
    { apt-get update && apt-get install -y --no-install-recommends ca-certificates iptables && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /out/ /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/podrole"]
CMD ["run"]
