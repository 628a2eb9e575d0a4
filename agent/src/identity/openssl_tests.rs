//! A table of certificates that are wrong, made with OpenSSL and presented by it, as a server and as a client: each is
//! refused, with a reason of its own.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command as AsyncCommand},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    TlsError, Trust, TrustBundle,
    crl::CrlFiles,
    spiffe::Expected,
    testing::{CLIENT, HOUR, TestRoot, WEB, identity, leaf},
    tls,
};

const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
const RSA_1024: &[&str] = &["-newkey", "rsa:1024"];
const RSA_2048: &[&str] = &["-newkey", "rsa:2048"];
const NOW: (&str, &str) = ("20200101000000Z", "21000101000000Z");
const PAST: (&str, &str) = ("20200101000000Z", "20200102000000Z");
const FUTURE: (&str, &str) = ("20990101000000Z", "21000101000000Z");
const AUTHORITY: &str = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n";
const BOTH: &str = "serverAuth,clientAuth";

/// One certificate of a workload.
struct Leaf {
    /// Who signs it, and the authorities that stand between it and the root.
    chain: &'static [&'static str],
    /// Its subjectAltName as OpenSSL writes it; `ID` stands for the SPIFFE ID that is expected of it.
    names: &'static str,
    usage: &'static str,
    constraints: &'static str,
    key_usage: &'static str,
    key: &'static [&'static str],
    validity: (&'static str, &'static str),
}

/// What is right; cases differ in one thing each.
const GOOD: Leaf = Leaf {
    chain: &["intermediate"],
    names: "URI:ID",
    usage: BOTH,
    constraints: "CA:false",
    key_usage: "digitalSignature",
    key: P256,
    validity: NOW,
};

/// What is wrong with a server's and a client's certificate, and what the error says of it.
struct Case {
    name: &'static str,
    server: Leaf,
    client: Leaf,
    says: (&'static str, &'static str),
}

fn case(name: &'static str, says: &'static str, spoiled: fn() -> Leaf) -> Case {
    Case { name, server: spoiled(), client: spoiled(), says: (says, says) }
}

fn cases() -> Vec<Case> {
    vec![
        case("expired", "expired at 2020-01-02", || Leaf { validity: PAST, ..GOOD }),
        case("not yet valid", "not valid before 2099-01-01", || Leaf { validity: FUTURE, ..GOOD }),
        case("wrong trust domain", "outside our trust domain", || Leaf {
            names: "URI:spiffe://elsewhere.example/ns/shop/sa/web",
            ..GOOD
        }),
        case("no SAN", "no subjectAltName at all", || Leaf { names: "", ..GOOD }),
        case("DNS SAN only", "none of its 1 subjectAltNames is a URI", || Leaf {
            names: "DNS:web.shop.svc.cluster.local",
            ..GOOD
        }),
        case("two URI SANs", "2 URIs", || Leaf {
            names: "URI:ID,URI:spiffe://cluster.local/ns/shop/sa/other",
            ..GOOD
        }),
        case("extra segments", "\"spiffe://cluster.local/ns/shop/sa/web/admin\" is not of the form", || {
            Leaf { names: "URI:spiffe://cluster.local/ns/shop/sa/web/admin", ..GOOD }
        }),
        case("a trailing slash", "/\" is not of the form", || Leaf { names: "URI:ID/", ..GOOD }),
        case("a percent-encoded letter", "\"w%65b\" is not a Kubernetes service account name", || Leaf {
            names: "URI:spiffe://cluster.local/ns/shop/sa/w%65b",
            ..GOOD
        }),
        case("an upper-case letter", "\"Shop\" is not a Kubernetes namespace name", || Leaf {
            names: "URI:spiffe://cluster.local/ns/Shop/sa/web",
            ..GOOD
        }),
        case("dots for a name", "\"..\" is not a Kubernetes service account name", || Leaf {
            names: "URI:spiffe://cluster.local/ns/shop/sa/..",
            ..GOOD
        }),
        case("a port in the trust domain", "\"cluster.local:80\" is not a trust domain", || Leaf {
            names: "URI:spiffe://cluster.local:80/ns/shop/sa/web",
            ..GOOD
        }),
        Case {
            name: "wrong EKU",
            server: Leaf { usage: "clientAuth", ..GOOD },
            client: Leaf { usage: "serverAuth", ..GOOD },
            says: ("not for a server", "not for a client"),
        },
        case("CA flag", "basicConstraints CA:TRUE", || Leaf { constraints: "CA:true", ..GOOD }),
        case("may sign certificates", "key usage keyCertSign", || Leaf {
            key_usage: "digitalSignature,keyCertSign",
            ..GOOD
        }),
        case("unknown issuer", "no root that is trusted here", || Leaf { chain: &["stranger"], ..GOOD }),
        case("weak key", "an RSA key of 1024 bits", || Leaf { key: RSA_1024, ..GOOD }),
        case("revoked", "the peer's certificate was revoked", || Leaf { chain: &["strict"], ..GOOD }),
        case("revoked intermediate", "the authority CN=revoked", || Leaf { chain: &["revoked"], ..GOOD }),
        case("a chain too long", "more authorities in it than are allowed", || Leaf {
            chain: &["deep7", "deep6", "deep5", "deep4", "deep3", "deep2", "deep1"],
            ..GOOD
        }),
    ]
}

/// A directory where OpenSSL makes authorities and certificates.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: TempDir::new().unwrap() };
        for root in ["root", "stranger"] {
            let make = ["req", "-x509", "-nodes", "-days", "2", "-subj", &format!("/CN={root}"), "-keyout"];
            let (key, certificate) = (format!("{root}.key"), format!("{root}.pem"));
            let files = [&*key, "-out", &certificate];
            let extensions = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"];
            lab.openssl(&[&make[..], &files, P256, &extensions].concat());
        }
        for name in ["intermediate", "strict", "revoked"] {
            lab.authority(name, "root");
        }
        for depth in 1..=7 {
            let above = if depth == 1 { "root".to_owned() } else { format!("deep{}", depth - 1) };
            lab.authority(&format!("deep{depth}"), &above);
        }
        lab.revoke("root", "revoked");
        lab
    }

    fn authority(&self, name: &str, above: &str) {
        self.sign(name, above, P256, AUTHORITY, NOW);
    }

    /// Makes the certificate of a workload, and its chain in one file.
    fn leaf(&self, name: &str, leaf: &Leaf, id: &str) {
        let Leaf { chain, names, usage, constraints, key_usage, key, validity } = leaf;
        let mut extensions = format!(
            "basicConstraints=critical,{constraints}\nkeyUsage=critical,{key_usage}\nextendedKeyUsage={usage}\n"
        );
        if !names.is_empty() {
            extensions += &format!("subjectAltName={}\n", names.replace("ID", id));
        }
        self.sign(name, chain[0], key, &extensions, *validity);
        let chain: Vec<_> = chain.iter().map(|issuer| self.read(&format!("{issuer}.pem"))).collect();
        self.write(format!("{name}.chain"), chain.concat());
    }

    /// `openssl ca`, since `openssl x509` of 3.0 cannot set a date that has passed.
    fn sign(&self, name: &str, issuer: &str, key: &[&str], extensions: &str, validity: (&str, &str)) {
        let config = self.config(issuer, &format!("{name}.config"), extensions);
        let (private, request) = (format!("{name}.key"), format!("{name}.csr"));
        let make =
            ["req", "-new", "-nodes", "-subj", &format!("/CN={name}"), "-keyout", &private, "-out", &request];
        self.openssl(&[&make[..], key].concat());
        let out = format!("{name}.pem");
        let sign = ["ca", "-batch", "-notext", "-config", &config, "-in", &request, "-out", &out];
        self.openssl(&[&sign[..], &["-startdate", validity.0, "-enddate", validity.1]].concat());
    }

    fn revoke(&self, issuer: &str, name: &str) {
        let config = self.config(issuer, &format!("{issuer}.revoke"), AUTHORITY);
        self.openssl(&["ca", "-config", &config, "-revoke", &format!("{name}.pem")]);
        let out = format!("{issuer}.crl");
        self.openssl(&["ca", "-config", &config, "-gencrl", "-crldays", "1", "-out", &out]);
    }

    fn config(&self, issuer: &str, file: &str, extensions: &str) -> String {
        let (dir, index) = (self.dir.path().display(), format!("{issuer}.index"));
        if !self.dir.path().join(&index).exists() {
            self.write(&index, "");
        }
        let text = format!(
            "[ca]\ndefault_ca=here\n\
             [here]\ndatabase={dir}/{index}\nnew_certs_dir={dir}\nrand_serial=yes\nunique_subject=no\n\
             certificate={dir}/{issuer}.pem\nprivate_key={dir}/{issuer}.key\ndefault_md=sha256\npolicy=any\n\
             x509_extensions=these\ncrl_extensions=list\n\
             [any]\ncommonName=optional\n[list]\nauthorityKeyIdentifier=keyid\n[these]\n{extensions}"
        );
        self.write(file, text);
        file.to_owned()
    }

    /// The roots, and whatever lists there are.
    fn trust(&self) -> Trust {
        let bundle = TrustBundle::from_pem(&self.read("root.pem")).unwrap();
        let lists = ["root.crl", "strict.crl"].map(|list| self.dir.path().join(list));
        let lists: Vec<_> = lists.into_iter().filter(|list| list.exists()).collect();
        let lists = CrlFiles::read(&lists).unwrap().lists;
        watch::channel(Arc::new(bundle.with_lists(lists))).1
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.dir.path()).output();
        let output = output.expect("openssl runs (Debian package openssl)");
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// OpenSSL as one end of a connection; security level 0 lets it present keys that it would call too weak itself.
    fn end(&self, command: &str, name: &str, more: &[&str]) -> Child {
        let (certificate, key, chain) =
            (format!("{name}.pem"), format!("{name}.key"), format!("{name}.chain"));
        AsyncCommand::new("openssl")
            .args([command, "-tls1_3", "-alpn", "h2", "-cipher", "DEFAULT@SECLEVEL=0"])
            .args(["-cert", &certificate, "-key", &key, "-cert_chain", &chain])
            .args(more)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl runs")
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join(name), content).unwrap();
    }
}

/// Our client, to an OpenSSL server that presents `name`.
async fn connect(lab: &Lab, name: &str) -> Result<(), TlsError> {
    let mut server = lab.end("s_server", name, &["-accept", "127.0.0.1:0"]);
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let port = loop {
        let line = lines.next_line().await.unwrap().expect("the server says where it listens");
        if let Some(address) = line.strip_prefix("ACCEPT 127.0.0.1:") {
            break address.parse().unwrap();
        }
    };
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let web = identity(WEB);
    let expected = Expected::Workload { ours: web.trust_domain().clone(), identity: Arc::new(web) };
    let own = TestRoot::new("ours").issue(&leaf(CLIENT));
    let config = tls::client_config(own, lab.trust(), expected);
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let ended = timeout(HOUR / 60, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await;
    ended.expect("an end of the handshake").map(drop).map_err(|error| TlsError::from_io(&error))
}

/// Our server, from an OpenSSL client that presents `name`.
async fn accept(lab: &Lab, name: &str) -> Result<(), TlsError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut client = lab.end("s_client", name, &["-connect", &address]);
    let mut said = client.stdout.take().unwrap();
    tokio::spawn(async move { said.read_to_end(&mut Vec::new()).await });
    let (tcp, _) = listener.accept().await.unwrap();
    let own = TestRoot::new("ours").issue(&leaf(WEB));
    let expected = Expected::TrustDomain(identity(WEB).trust_domain().clone());
    let config = tls::server_config(own, lab.trust(), expected);
    let ended = timeout(HOUR / 60, TlsAcceptor::from(Arc::new(config)).accept(tcp)).await;
    ended.expect("an end of the handshake").map(drop).map_err(|error| TlsError::from_io(&error))
}

#[tokio::test]
async fn certificates_that_are_wrong_are_refused_on_both_sides_each_for_its_own_reason() {
    let lab = Lab::new();
    let cases = cases();
    for (number, Case { server, client, .. }) in cases.iter().enumerate() {
        lab.leaf(&format!("server{number}"), server, WEB);
        lab.leaf(&format!("client{number}"), client, CLIENT);
        if server.chain == ["strict"] {
            lab.revoke("strict", &format!("server{number}"));
            lab.revoke("strict", &format!("client{number}"));
        }
    }
    let mut reasons = [HashSet::new(), HashSet::new()];
    for (number, Case { name, says, .. }) in cases.iter().enumerate() {
        let refused = connect(&lab, &format!("server{number}")).await;
        let server = refused.expect_err(name).to_string();
        let refused = accept(&lab, &format!("client{number}")).await;
        let client = refused.expect_err(name).to_string();
        println!("{name}: {server}\n{:width$}  {client}", "", width = name.len());
        assert!(server.contains(says.0), "{name}, as a server: {server}");
        assert!(client.contains(says.1), "{name}, as a client: {client}");
        assert!(reasons[0].insert(server), "{name} has the reason of another case, as a server");
        assert!(reasons[1].insert(client), "{name} has the reason of another case, as a client");
    }
}

#[tokio::test]
async fn certificates_that_are_right_are_taken_whatever_their_key_and_chain() {
    let lab = Lab::new();
    let right = [
        ("P-256", GOOD),
        ("P-384", Leaf { key: P384, ..GOOD }),
        ("RSA 2048", Leaf { key: RSA_2048, ..GOOD }),
        ("the root itself signed it", Leaf { chain: &["root"], ..GOOD }),
        ("names of other types", Leaf { names: "DNS:web,URI:ID,IP:192.0.2.9", ..GOOD }),
        ("its issuer has revoked another", Leaf { chain: &["strict"], ..GOOD }),
        (
            "as long a chain as is followed",
            Leaf { chain: &["deep6", "deep5", "deep4", "deep3", "deep2", "deep1"], ..GOOD },
        ),
    ];
    lab.leaf("other", &Leaf { chain: &["strict"], ..GOOD }, WEB);
    lab.revoke("strict", "other");
    for (number, (name, leaf)) in right.iter().enumerate() {
        lab.leaf(&format!("server{number}"), leaf, WEB);
        lab.leaf(&format!("client{number}"), leaf, CLIENT);
        connect(&lab, &format!("server{number}")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        accept(&lab, &format!("client{number}")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // Each for one end only is enough for that end.
    lab.leaf("server", &Leaf { usage: "serverAuth", ..GOOD }, WEB);
    lab.leaf("client", &Leaf { usage: "clientAuth", ..GOOD }, CLIENT);
    connect(&lab, "server").await.unwrap();
    accept(&lab, "client").await.unwrap();
}

#[tokio::test]
async fn authority_with_a_weak_key_is_named_as_such() {
    let lab = Lab::new();
    lab.sign("weak", "root", RSA_1024, AUTHORITY, NOW);
    lab.leaf("server", &Leaf { chain: &["weak"], ..GOOD }, WEB);
    let error = connect(&lab, "server").await.unwrap_err();
    assert!(matches!(error, TlsError::WeakKey(_)), "{error}");
}

#[test]
fn the_root_of_a_chain_is_known() {
    let lab = Lab::new();
    lab.leaf("server", &GOOD, WEB);
    let roots = [lab.read("stranger.pem"), lab.read("root.pem")].concat();
    let bundle = TrustBundle::from_pem(&roots).unwrap();
    let [leaf, issuer, root] = ["server.pem", "server.chain", "root.pem"]
        .map(|name| CertificateDer::from_pem_slice(&lab.read(name)).unwrap());
    let now = rustls::pki_types::UnixTime::now();
    let found = bundle.verify(super::Usage::Server, (&leaf, &[issuer]), now).unwrap();
    assert_eq!(*found, root);
}
