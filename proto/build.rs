//! Compiles the .proto files in Rust, so that no `protoc` need be installed.

const FILES: [&str; 10] = [
    "kvpn/v1/agent.proto",
    "kvpn/v1/environment.proto",
    "kvpn/v1/files.proto",
    "kvpn/v1/filter.proto",
    "kvpn/v1/lease.proto",
    "kvpn/v1/manager.proto",
    "kvpn/v1/requests.proto",
    "kvpn/v1/session.proto",
    "kvpn/v1/tls.proto",
    "kvpn/v1/tunnel.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut descriptors = protox::compile(FILES, ["proto"])?;
    // kvpn-tunnel implements this one's service itself: tonic's codecs would
    // copy what flows carry.
    for file in &mut descriptors.file {
        if file.name() == "kvpn/v1/tunnel.proto" {
            file.service.clear();
        }
    }
    tonic_prost_build::configure()
        .bytes(".")
        // They hold a key and secrets, which no log may show.
        .skip_debug([".kvpn.v1.TlsIdentity", ".kvpn.v1.Environment"])
        .compile_fds(descriptors)?;
    Ok(())
}
