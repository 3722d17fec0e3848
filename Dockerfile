# The image of flanneld, for pods (dist/kubernetes, dist/helm) and by itself: `docker build --tag NAME .`
# dist/docker/check makes the same files without Docker and tries them.

FROM rust:1.95-trixie AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends musl-tools protobuf-compiler libprotobuf-dev libcap2-bin ca-certificates
WORKDIR /src
COPY . .
# Static, so that what runs is what was tested, whatever the image below has.
RUN target="$(uname -m)-unknown-linux-musl" \
 && rustup target add "$target" \
 && cargo build --locked --release --package flannel-bin --target "$target" \
 && cargo build --locked --profile small --package flannel-cni --bin flannel --target "$target" \
 && install -D --strip "target/$target/release/flanneld" /out/opt/bin/flanneld \
 && install -D --strip "target/$target/small/flannel" /out/flannel

# The agent runs as a user, who has by its file what the pod's securityContext allows.
RUN setcap cap_net_admin,cap_net_raw=p /out/opt/bin/flanneld

# Nothing but the agent, the plugin and certificates, for clusters whose rules are kept by nftables (`EnableNFTables`: true), which takes
# no program: `docker build --target minimal`. Iptables, mk-docker-opts.sh and install-conf, a script each, are in the image below.
FROM scratch AS minimal
COPY --from=build /out/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENTRYPOINT ["/opt/bin/flanneld"]

FROM debian:trixie-slim
# Rules by either manager, as the node has them: nft, and iptables in both variants. ip(8) is for whoever looks around,
# setcap(8) for the line below.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates iproute2 iptables libcap2-bin nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /
# The capabilities again, for builders that lose them when they copy. Nobody becomes root by a program.
RUN setcap cap_net_admin,cap_net_raw=p /opt/bin/flanneld \
 && find / -xdev -type f -perm /6000 -exec chmod ug-s {} +
# What manifests for the Go flannel's image expect.
COPY dist/docker/install-conf dist/docker/mk-docker-opts.sh /opt/bin/
COPY dist/rt_protos.d-flannel.conf /etc/iproute2/rt_protos.d/flannel.conf
ENTRYPOINT ["/opt/bin/flanneld"]
