//! The authority behind the server, the server's own certificate, the audit, and the server's end.

use super::*;
use crate::identity::{Trust, ca::Signing};

/// An authority that does something else than it is asked for.
#[derive(Debug)]
struct Twisted {
    local: Arc<LocalCa>,
    twist: fn(&Csr, &Identity) -> Twist,
}

/// What it does.
enum Twist {
    /// It signs this.
    Sign(Csr, Identity),
    /// It answers this.
    Answer(Result<Issued, CaError>),
}

impl CertificateAuthority for Twisted {
    fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
        Box::pin(async move {
            match (self.twist)(csr, identity) {
                Twist::Sign(csr, identity) => self.local.sign(&csr, &identity).await,
                Twist::Answer(answer) => answer,
            }
        })
    }

    fn source(&self) -> String {
        "twisted".to_owned()
    }

    fn trust(&self) -> Trust {
        self.local.trust()
    }
}

async fn behind(twist: fn(&Csr, &Identity) -> Twist) -> World {
    World::behind(|_| {}, |local| Arc::new(Twisted { local, twist })).await
}

#[tokio::test]
async fn what_the_authority_signs_is_not_believed() {
    let other_key = behind(|_, identity| {
        Twist::Sign(Csr::new(identity, &KeyPair::generate().unwrap()).unwrap(), identity.clone())
    });
    let other_identity = behind(|csr, _| Twist::Sign(csr.clone(), identity("db")));
    let longer = behind(|csr, identity| Twist::Sign(Csr::from_der(csr.der().clone()), identity.clone()));
    let nothing = behind(|_, _| Twist::Answer(Ok(Issued { chain: Vec::new() })));
    let failed = behind(|_, _| Twist::Answer(Err(CaError::Timeout(Duration::from_secs(1)))));
    for (world, reason, says) in [
        (other_key.await, "bad_certificate", "another key"),
        (other_identity.await, "bad_certificate", "sa/db"),
        (longer.await, "bad_certificate", "longer"),
        (nothing.await, "bad_certificate", "no certificate"),
        (failed.await, "authority_failed", "did not answer"),
    ] {
        let (code, message) = refusal(&world.ask(&world.agent(&claims("node-a")), "web").await.unwrap_err());
        assert_eq!(code, Code::Unavailable, "{message}");
        let line = world.audited();
        assert_eq!(line["reason"], reason, "{line}");
        let error = line["error"].as_str().unwrap();
        assert!(error.contains(says), "{error}");
        assert!(!message.contains(says), "callers are not told what is behind the server: {message}");
    }
}

#[tokio::test]
async fn no_certificate_leaves_without_its_line_in_the_audit() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let world = World::new().await;
    let tokens = SignedTokens::new(TokenRules {
        jwks: world.path("jwks.json"),
        audience: "istio-ca".to_owned(),
        issuer: None,
        agents: vec!["culvert-system/culvert-agent".parse().unwrap()],
    });
    let callers = Callers::Signed(tokens.unwrap());
    let config = ServiceConfig {
        trust_domain: "cluster.local".parse().unwrap(),
        max_lifetime: Duration::from_secs(3600),
        requests_per_node: NonZeroU32::MIN,
        late_pods: Duration::ZERO,
    };
    let mut registry = Registry::default();
    let parts = (callers, Audit::start(Full).unwrap(), Metrics::register(&mut registry));
    let service = CaService::new(config, world.ca.clone(), world.mesh.subscribe(), parts);
    let mut request = tonic::Request::new(requests::request(&identity("web")));
    let token = format!("Bearer {}", world.issuer.sign(&claims("node-a")));
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    let status = service.create(world.address, request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("audit"), "{status}");
}

#[tokio::test]
async fn the_servers_own_certificate_is_replaced_with_its_files_and_bad_files_change_nothing() {
    let world = World::new().await;
    let dir = world.dir.path();
    let make = |name: &str| {
        let subject = format!("/CN={name}");
        let san = format!("subjectAltName=DNS:{name}");
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "new.key"];
        let certificate =
            ["req", "-x509", "-days", "1", "-subj", &subject, "-addext", &san, "-out", "new.pem"];
        openssl(dir, &[&certificate[..], &key].concat());
        for (from, to) in [("new.key", "server.key"), ("new.pem", "server.pem")] {
            fs::rename(dir.join(from), dir.join(to)).unwrap();
        }
    };
    let from_files = || ServerCertificate::from_files(dir.join("server.pem"), dir.join("server.key"));
    let missing = from_files().unwrap_err().to_string();
    assert!(missing.contains("server.pem"), "{missing}");
    make("first");
    let certificate = Arc::new(from_files().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, acceptor) =
        (listener.local_addr().unwrap(), tokio_rustls::TlsAcceptor::from(certificate.server_config()));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            drop(acceptor.accept(stream).await);
        }
    });
    let shown = move || {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &address.to_string(), "-tls1_3", "-alpn", "h2"])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shows = async |name: &'static str| {
        let shown = tokio::task::spawn_blocking(shown);
        shown.await.unwrap().contains(&format!("subject=CN = {name}"))
    };
    until(async || shows("first").await).await;
    make("second");
    until(async || shows("second").await).await;
    fs::write(dir.join("server.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let mut state = certificate.file().unwrap();
    state
        .wait_for(|state| state.error.as_ref().is_some_and(|error| error.contains("not the key")))
        .await
        .unwrap();
    assert!(shows("second").await, "what was there before stays in use");
    assert!(certificate.not_after().unwrap() > SystemTime::now());
}

#[tokio::test]
async fn the_servers_own_certificate_is_for_its_names_and_for_no_member_of_the_mesh() {
    let world = World::new().await;
    let names = ["ca.example", "192.0.2.1"].map(|name| name.try_into().unwrap());
    let certified = world.ca.certify_server(&names, Duration::from_secs(60)).unwrap();
    certified.keys_match().unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&certified.cert[0]).unwrap();
    let shown = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(
        shown.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["DNSName(ca.example)", "IPAddress(c0:00:02:01)"]
    );
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let until = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
    assert!(until <= now() + 60);
    // As a member of the mesh sees it.
    let issued = Issued { chain: certified.cert.clone() };
    let csr = Csr::new(&identity("web"), &KeyPair::generate().unwrap()).unwrap();
    issued.check(&csr, &identity("web"), &world.ca.trust()).unwrap_err();
}

#[tokio::test]
async fn at_its_end_the_server_answers_what_was_asked_and_takes_nothing_new() {
    let (asked, mut was_asked) = tokio::sync::mpsc::channel(1);
    let (go, mut gone) = watch::channel(false);
    let world = World::behind(
        |_| {},
        |local| {
            #[derive(Debug)]
            struct Slow(Arc<LocalCa>, tokio::sync::mpsc::Sender<()>, watch::Receiver<bool>);
            impl CertificateAuthority for Slow {
                fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
                    Box::pin(async move {
                        self.1.send(()).await.unwrap();
                        self.2.clone().wait_for(|go| *go).await.unwrap();
                        self.0.sign(csr, identity).await
                    })
                }

                fn source(&self) -> String {
                    "slow".to_owned()
                }

                fn trust(&self) -> Trust {
                    self.0.trust()
                }
            }
            Arc::new(Slow(local, asked, gone.clone()))
        },
    )
    .await;
    gone.mark_unchanged();
    let agent = world.agent(&claims("node-a"));
    let asking = async { world.ask(&agent, "web").await };
    let ending = async {
        was_asked.recv().await.unwrap();
        let shutdown = world.shutdown.clone();
        let ended = tokio::spawn(async move { shutdown.run(Duration::from_secs(30)).await });
        until(async || tokio::net::TcpStream::connect(world.address).await.is_err()).await;
        go.send_replace(true);
        ended.await.unwrap();
    };
    let (answer, ()) = tokio::join!(asking, ending);
    answer.unwrap();
    assert_eq!(world.audit_lines().len(), 1);
}
