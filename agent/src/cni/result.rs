//! What the plugins before this one made: the addresses of the pod in a CNI result (specification 0.3.0 and later).

use std::net::IpAddr;

use serde::Deserialize;

#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    /// The network namespace that it is in; empty on the host.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    /// With the prefix's length: `10.1.2.3/24`.
    address: String,
    /// Which of the interfaces has it.
    interface: Option<usize>,
}

/// Returns the addresses that the pod has by a result, canonical, those of the host's interfaces left out.
///
/// # Errors
/// Where it is no CNI result; says what is wrong with it.
pub(super) fn addresses(result: &str) -> Result<Vec<IpAddr>, String> {
    let made: Made = serde_json::from_str(result).map_err(|error| error.to_string())?;
    let mut addresses = Vec::new();
    for ip in &made.ips {
        let interface = ip.interface.and_then(|index| made.interfaces.get(index));
        if interface.is_some_and(|interface| interface.sandbox.is_empty()) {
            continue;
        }
        let text = ip.address.split_once('/').map_or(&*ip.address, |(address, _)| address);
        let address: IpAddr = text.parse().map_err(|_| format!("{:?} is not an address", ip.address))?;
        let address = address.to_canonical();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(result: &str, expected: Result<&[&str], &str>) {
        let found = addresses(result);
        match expected {
            Ok(expected) => {
                let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
                assert_eq!(found, Ok(expected), "{result}");
            }
            Err(expected) => assert!(found.clone().unwrap_err().contains(expected), "{found:?}"),
        }
    }

    #[test]
    fn the_pods_addresses_are_those_inside_its_namespace() {
        check(
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/var/run/netns/a"}],
                "ips":[{"interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"},{"interface":0,"address":"10.1.2.1/24"},
                       {"interface":1,"address":"fd00::3/64"}]}"#,
            Ok(&["10.1.2.3", "fd00::3"]),
        );
        // Without an interface it is the pod's, as in results of plugins that make none.
        check(r#"{"ips":[{"version":"4","address":"10.1.2.3/24"}]}"#, Ok(&["10.1.2.3"]));
        check(r#"{"cniVersion":"1.0.0"}"#, Ok(&[]));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        check("7", Err("invalid type"));
        check(r#"{"ips":[{"address":"ten"}]}"#, Err("\"ten\" is not an address"));
    }
}
