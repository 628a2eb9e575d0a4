//! The agent's side: plain old data for aya, and conversions from and to the standard library's addresses.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ptr,
};

use super::{
    Address, Handshake, Name, NativeEnd, NativeKey, NativePermit, Pod, PodPort, Pulse, Socket, Tuple,
};

macro_rules! plain_old_data {
    ($($ty:ty),+) => {$(
        #[expect(unsafe_code, reason = "aya asks for the promise that any bytes are a valid value")]
        // SAFETY: `repr(C)`, integers only, and without padding (asserted beside the type).
        unsafe impl aya::Pod for $ty {}
    )+};
}

plain_old_data!(
    Address,
    Handshake,
    Name,
    NativeEnd,
    NativeKey,
    NativePermit,
    Pod,
    PodPort,
    Pulse,
    Socket,
    Tuple
);

/// Reads a value from bytes that came from the kernel; none where there are too few.
pub fn from_bytes<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    #[expect(unsafe_code, reason = "the kernel hands the value over as bytes")]
    // SAFETY: there are enough bytes, and any are a valid value: that is what the trait promises.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self(words)
    }
}

impl From<Address> for IpAddr {
    /// Returns the address, canonical: IPv4-mapped becomes IPv4.
    fn from(Address(words): Address) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets)).to_canonical()
    }
}

impl Socket {
    /// Returns [`Self::address`] with its port.
    pub fn socket_addr(&self) -> SocketAddr {
        // A port has 16 bits; the field is wider for the kernel's sake only.
        #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
        SocketAddr::new(self.address.into(), self.port as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["10.77.0.2", "::1", "fd00::2", "127.0.0.1", "255.255.255.255"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn mapped_and_plain_ipv4_are_one_key() {
        let plain: IpAddr = "10.77.0.2".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.77.0.2".parse().unwrap();
        assert_eq!(Address::from(plain), Address::from(mapped));
        assert!(Address::from(plain).is_v4());
    }

    #[test]
    fn loopback_is_told_from_the_rest() {
        let loopback = |text: &str| Address::from(text.parse::<IpAddr>().unwrap()).is_loopback();
        assert!(loopback("127.0.0.1") && loopback("127.255.0.9") && loopback("::1"));
        assert!(!loopback("126.0.0.1") && !loopback("::2") && !loopback("::") && !loopback("10.0.0.127"));
    }
}
