//! What Prometheus is told, and what addresses are described as.

use super::*;

impl Lab {
    /// Asks for the metrics with a token.
    async fn scrape(&self, token: Option<&str>) -> (StatusCode, String) {
        let stream = TokioIo::new(self.tls(self.sessions, &[]).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get(names::METRICS_PATH).header(header::HOST, "x");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// An API server that knows the tokens `prometheus` and `bob`, and lets the
/// former read metrics.
pub(super) fn api_server() -> Client {
    let service = tower::service_fn(|request: Request<kube::client::Body>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
        review["status"] = if review["kind"] == "TokenReview" {
            let name = review["spec"]["token"].clone();
            let known = name == "prometheus" || name == "bob";
            json!({ "authenticated": known, "user": { "username": name, "groups": ["g"] } })
        } else {
            let asked = &review["spec"]["nonResourceAttributes"];
            assert_eq!(*asked, json!({ "path": "/metrics", "verb": "get" }));
            assert_eq!(review["spec"]["groups"], json!(["g"]));
            json!({ "allowed": review["spec"]["user"] == "prometheus" })
        };
        let body = http_body_util::Full::new(Bytes::from(review.to_string()));
        Ok::<_, Infallible>(Response::new(body))
    });
    Client::new(service, "kvpn")
}

#[tokio::test]
async fn metrics_are_for_those_whom_the_cluster_lets_read_them() {
    let lab = Lab::start().await;
    for (token, expected) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("stranger"), StatusCode::UNAUTHORIZED),
        (Some("bob"), StatusCode::FORBIDDEN),
        (Some("prometheus"), StatusCode::OK),
        // From what is remembered.
        (Some("bob"), StatusCode::FORBIDDEN),
        (Some("prometheus"), StatusCode::OK),
    ] {
        let (status, text) = lab.scrape(token).await;
        assert_eq!(status, expected, "{token:?}");
        assert_eq!(text.contains("kvpn_build_info"), status == StatusCode::OK);
    }
}

#[tokio::test]
async fn metrics_tell_what_there_is_and_what_failed() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let _dials = client.watch_dials(v1::WatchDialsRequest {}).await.unwrap();
    let address = SocketAddr::new([127, 0, 0, 1].into(), 9);
    let target = OpenTarget::Destination {
        protocol: Protocol::Tcp,
        address,
    };
    let mut frames = client.tunnel.carry(Frame::Open(target));
    assert!(matches!(next_frame(&mut frames).await, Frame::Failed(_)));
    drop(frames);

    let wanted = "kvpn_flows_open{protocol=\"tcp\",from=\"laptop\"} 0\n";
    let scrapes = async {
        loop {
            let (_, text) = lab.scrape(Some("prometheus")).await;
            if text.contains(wanted) {
                return text;
            }
        }
    };
    let text = timeout(LIMIT, scrapes).await.unwrap();
    let version = kvpn_proto::version::VERSION;
    let text = text.replace(version, "VERSION");
    insta::assert_snapshot!("metrics", text);
}

#[tokio::test]
async fn addresses_are_described_by_the_pods_that_have_them() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    let request = |ip: [u8; 4]| v1::DescribeRequest {
        addresses: vec![Bytes::copy_from_slice(&ip)],
    };
    let refused = client.describe(request([127, 0, 0, 1])).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();

    let described = client.describe(request([127, 0, 0, 1])).await.unwrap();
    let pods = described.into_inner().pods;
    assert_eq!(
        (pods[0].namespace.as_str(), pods[0].name.as_str()),
        ("shop", "web-1")
    );
    let unknown = client.describe(request([10, 0, 0, 1])).await.unwrap();
    assert!(unknown.into_inner().pods.is_empty());
    let malformed = client.describe(v1::DescribeRequest {
        addresses: vec![Bytes::from_static(b"abc")],
    });
    let malformed = malformed.await.unwrap_err();
    assert_eq!(malformed.code(), tonic::Code::InvalidArgument);
}
