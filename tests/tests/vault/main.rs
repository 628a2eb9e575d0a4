//! HashiCorp Vault or OpenBao as the authority, against a server that speaks their API as its documentation has it
//! (<https://developer.hashicorp.com/vault/api-docs>): the real ones are no package of any distribution.

mod agents;
mod faults;
mod logins;
mod pki;
mod serve;
mod server;
mod signing;
