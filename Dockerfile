# The image of flanneld, for pods (dist/kubernetes, dist/helm) and by itself: `docker build --tag NAME .`
# dist/docker/check makes the same files without Docker and tries them.

FROM rust:1.95-trixie AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends musl-tools protobuf-compiler libprotobuf-dev
WORKDIR /src
COPY . .
# Static, so that what runs is what was tested, whatever the image below has.
RUN target="$(uname -m)-unknown-linux-musl" \
 && rustup target add "$target" \
 && cargo build --locked --release --package flannel-bin --target "$target" \
 && cargo build --locked --profile small --package flannel-cni --bin flannel --target "$target" \
 && install -D --strip "target/$target/release/flanneld" /out/opt/bin/flanneld \
 && install -D --strip "target/$target/small/flannel" /out/flannel

FROM debian:trixie-slim
# Rules by either manager, as the node has them: nft, and iptables in both variants. ip(8) is for whoever looks around,
# setcap(8) for the line below.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates iproute2 iptables libcap2-bin nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /
# The agent runs as a user, who has by its file what the pod's securityContext allows. Nobody becomes root by a program.
RUN setcap cap_net_admin,cap_net_raw=p /opt/bin/flanneld \
 && find / -xdev -type f -perm /6000 -exec chmod ug-s {} +
# What manifests for the Go flannel's image expect.
COPY dist/docker/install-conf dist/docker/mk-docker-opts.sh /opt/bin/
COPY dist/rt_protos.d-flannel.conf /etc/iproute2/rt_protos.d/flannel.conf
ENTRYPOINT ["/opt/bin/flanneld"]
