//! Certificates and kubeconfigs of the throwaway cluster.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use super::layout::Layout;
use super::net;

/// Users of the cluster who are people. They have no groups: what they may do
/// is what their RoleBindings say.
pub const USERS: [&str; 2] = ["alice", "bob"];

/// Makes a CA, the certificates of all components and users, the key of
/// service accounts, and a kubeconfig for each client.
pub(crate) fn create(layout: &Layout) -> Result<()> {
    let dir = layout.pki();
    fs::create_dir_all(&dir).context("create the PKI directory")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name("kvpn lab CA", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(dir.join("ca.crt"), ca.pem())?;
    fs::write(dir.join("ca.key"), ca.key().serialize_pem())?;

    let api_names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
    ];
    let api_ips = [
        net::NODE_V4,
        net::NODE_V6,
        net::API_SERVICE_V4,
        "127.0.0.1",
        "::1",
    ];
    issue(
        &dir,
        &ca,
        "apiserver",
        ("kube-apiserver", None),
        &api_names,
        &api_ips,
    )?;
    let node = ("system:node:node1", Some("system:nodes"));
    issue(
        &dir,
        &ca,
        "kubelet",
        node,
        &["node1"],
        &[net::NODE_V4, net::NODE_V6],
    )?;
    issue(&dir, &ca, "front-proxy", ("front-proxy", None), &[], &[])?;
    issue(
        &dir,
        &ca,
        "admin",
        ("admin", Some("system:masters")),
        &[],
        &[],
    )?;
    for user in USERS {
        issue(&dir, &ca, user, (user, None), &[], &[])?;
    }
    let service_accounts = KeyPair::generate()?;
    fs::write(dir.join("sa.key"), service_accounts.serialize_pem())?;
    fs::write(dir.join("sa.pub"), service_accounts.public_key_pem())?;

    for user in ["admin", "kubelet"].iter().chain(&USERS) {
        fs::write(layout.kubeconfig(user), kubeconfig(&dir, user)?)?;
    }
    Ok(())
}

fn issue(
    dir: &Path,
    ca: &CertifiedIssuer<'_, KeyPair>,
    file: &str,
    (common_name, organization): (&str, Option<&str>),
    names: &[&str],
    ips: &[&str],
) -> Result<()> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    for ip in ips {
        params
            .subject_alt_names
            .push(SanType::IpAddress(ip.parse::<IpAddr>()?));
    }
    params.distinguished_name = name(common_name, organization);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    fs::write(
        dir.join(format!("{file}.crt")),
        params.signed_by(&key, ca)?.pem(),
    )?;
    fs::write(dir.join(format!("{file}.key")), key.serialize_pem())?;
    Ok(())
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// A kubeconfig that stands alone, with all certificates inside.
fn kubeconfig(dir: &Path, user: &str) -> Result<String> {
    let data = |file: &str| -> Result<String> {
        let bytes = fs::read(dir.join(file)).with_context(|| format!("read {file}"))?;
        // Kubernetes' own base64, as a JSON string.
        Ok(serde_json::to_string(&ByteString(bytes))?)
    };
    let (ca, crt, key) = (
        data("ca.crt")?,
        data(&format!("{user}.crt"))?,
        data(&format!("{user}.key"))?,
    );
    Ok(format!(
        "apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: https://{server}:6443
    certificate-authority-data: {ca}
users:
- name: {user}
  user:
    client-certificate-data: {crt}
    client-key-data: {key}
contexts:
- name: lab
  context: {{cluster: lab, user: {user}}}
current-context: lab
",
        server = net::NODE_V4
    ))
}
