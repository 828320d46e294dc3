//! Compiles the .proto files in Rust, so that no `protoc` need be installed.

const FILES: [&str; 5] = [
    "kvpn/v1/agent.proto",
    "kvpn/v1/lease.proto",
    "kvpn/v1/manager.proto",
    "kvpn/v1/session.proto",
    "kvpn/v1/tunnel.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
