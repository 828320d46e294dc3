//! What the traffic manager tells the agent in its arguments.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand};
use kvpn_files::server::Volume;
use kvpn_proto::duration::parse_duration;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

const PEM_START: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// Hands connections to a pod over to a laptop.
#[derive(Debug, Parser)]
#[command(
    name = "sidecar-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) args: Option<Args>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Wait until the agent of this pod has its first claims in force.
    AwaitSettled,
    /// Stop the processes of a container of this pod, as its agent says.
    Hold {
        /// The container, whose process namespace this one has joined.
        #[arg(long)]
        container: String,
        /// How long to stay without being asked for anything, such as 10m.
        #[arg(long, default_value = "10m", value_parser = parse_duration)]
        linger: Duration,
    },
    /// Read what a container of this pod has, as the traffic manager asks for it.
    Read(ReadArgs),
}

/// What a reader is told.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) args: Args,

    /// Where the other container has a volume mounted; with :ro where it may not write.
    #[arg(long = "volume", value_name = "PATH[:ro]", value_parser = parse_volume)]
    pub(crate) volumes: Vec<Volume>,
}

/// What the agent is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address and port of the traffic manager.
    #[arg(long)]
    manager: SocketAddr,

    /// Certificate authority of the traffic manager: PEM, or base64 of DER or
    /// of PEM.
    #[arg(long, allow_hyphen_values = true, value_parser = parse_certificate)]
    ca: CertificateDer<'static>,

    /// Name of the container that this runs in.
    #[arg(long)]
    container: String,

    /// How long to stay without any claim, or a reader without the traffic manager, such as
    /// 30s, 10m or 2h.
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    linger: Duration,

    /// File with a token of this pod, for a sidecar, which stays as long as its pod.
    #[arg(long)]
    token_file: Option<PathBuf>,
}

/// The arguments, ready for use.
pub(crate) struct Config {
    pub(crate) manager: SocketAddr,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) container: String,
    /// How long to stay without claims; `None` for as long as the pod.
    pub(crate) linger: Option<Duration>,
    pub(crate) token_file: Option<PathBuf>,
}

impl TryFrom<Args> for Config {
    type Error = anyhow::Error;

    fn try_from(args: Args) -> anyhow::Result<Self> {
        Ok(Self {
            manager: args.manager,
            tls: Arc::new(tls(args.ca)?),
            container: args.container,
            linger: args.token_file.is_none().then_some(args.linger),
            token_file: args.token_file,
        })
    }
}

/// Trusts that authority alone, and speaks HTTP/2.
fn tls(ca: CertificateDer<'static>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(ca).context("use the certificate authority")?;
    let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("set up TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

/// Kubernetes allows no colon in a mount's path.
fn parse_volume(text: &str) -> Result<Volume, Infallible> {
    let (path, read_only) = match text.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    Ok(Volume {
        path: path.into(),
        read_only,
    })
}

fn parse_certificate(text: &str) -> anyhow::Result<CertificateDer<'static>> {
    if text.trim_start().starts_with(PEM_START) {
        return Ok(CertificateDer::from_pem_slice(text.as_bytes())?);
    }
    // PEM is base64 between two lines.
    let pem = format!("{PEM_START}\n{}\n{PEM_END}\n", text.trim());
    let decoded = CertificateDer::from_pem_slice(pem.as_bytes())?;
    if decoded.starts_with(PEM_START.as_bytes()) {
        return Ok(CertificateDer::from_pem_slice(&decoded)?);
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Base64 of the bytes 0x30 0x03 0x02 0x01 0x05, a DER integer in a sequence.
    const DER: [u8; 5] = [0x30, 0x03, 0x02, 0x01, 0x05];
    const DER_BASE64: &str = "MAMCAQU=";

    #[test]
    fn certificate_is_read_from_base64_and_from_pem() {
        let pem = format!("{PEM_START}\n{DER_BASE64}\n{PEM_END}\n");
        assert_eq!(parse_certificate(DER_BASE64).unwrap().as_ref(), DER);
        assert_eq!(parse_certificate(&pem).unwrap().as_ref(), DER);
        assert!(parse_certificate("no base64!").is_err());
        assert!(parse_certificate("").unwrap_or(vec![].into()).is_empty());
    }

    #[test]
    fn what_is_no_certificate_is_no_authority() {
        assert!(tls(DER.to_vec().into()).is_err());
    }
}
