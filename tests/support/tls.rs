//! Certificates of the tests' own, and a Postgres that has one.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509Name};
use slowlane::pq::Session;

use super::eventually;
use super::postgres::Postgres;

/// Who signs certificates.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
    file: PathBuf,
}

fn key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

/// A certificate's builder, valid from yesterday until tomorrow.
fn builder(name: &str, key: &PKey<Private>) -> X509Builder {
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(rand::random()).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&common_name(name)).unwrap();
    builder.set_pubkey(key).unwrap();
    let yesterday = chrono::Utc::now().timestamp() - 86_400;
    builder.set_not_before(&Asn1Time::from_unix(yesterday).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder
}

impl Authority {
    /// One that nobody knows yet. Its certificate is a file of `folder`.
    pub fn new(folder: &Path, name: &str) -> Authority {
        let key = key();
        let mut builder = builder(name, &key);
        builder.set_issuer_name(&common_name(name)).unwrap();
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let authority = Authority { certificate: builder.build(), key, file: folder.join(format!("{name}.crt")) };
        fs::write(&authority.file, authority.certificate.to_pem().unwrap()).unwrap();
        authority
    }

    /// The file with its certificate.
    pub fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }

    /// A certificate for a server of this machine, and its key.
    fn sign_for_localhost(&self) -> (Vec<u8>, Vec<u8>) {
        let key = key();
        let mut builder = builder("localhost", &key);
        builder.set_issuer_name(self.certificate.subject_name()).unwrap();
        let context = builder.x509v3_context(Some(&self.certificate), None);
        let names = SubjectAlternativeName::new().dns("localhost").ip("127.0.0.1").build(&context).unwrap();
        builder.append_extension(names).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        (builder.build().to_pem().unwrap(), key.private_key_to_pem_pkcs8().unwrap())
    }

    /// Gives a server a certificate for `localhost` and 127.0.0.1, and switches TLS on.
    pub fn secure(&self, postgres: &Postgres) {
        let data = postgres.cluster.lock().unwrap().folder().join("pgdata");
        let owner = fs::metadata(&data).unwrap();
        let (certificate, key) = self.sign_for_localhost();
        for (name, content) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let superuser = postgres.superuser();
        let run = |sql: &str| Session::connect(&superuser).unwrap().query(sql, &[]).unwrap();
        run("ALTER SYSTEM SET ssl = on");
        run("SELECT pg_reload_conf()");
        eventually("the server has TLS", || run("SHOW ssl").get(0, 0) == Some("on"));
    }
}

fn common_name(name: &str) -> X509Name {
    let mut builder = X509Name::builder().unwrap();
    builder.append_entry_by_text("CN", name).unwrap();
    builder.build()
}
