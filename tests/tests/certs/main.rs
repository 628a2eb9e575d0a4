//! What is seen of certificates from outside: `culvert certs`, `culvert certs inspect`, the metrics and the alerts.

mod agent;
mod inspect;
mod pki;
