//! Frames as text, so that a table of packets can be read.
//!
//! Headers from the outside to the inside, separated by `|`; a payload comes last. Lengths and checksums
//! are computed from scratch, which is what the program's adjusted ones are compared with.
//!
//! ```text
//! eth client > lb | ip4 10.0.0.9 > 192.0.2.1 ttl 64 | udp 4000 > 53 | text hello
//! ```
//!
//! `ip4` takes `ttl`, `tos`, `id`, `off` (bytes), `proto`, `len`, `opts` (words) and the flags `df`, `mf`;
//! `ip6` takes `hops`, `tc`, `proto`, `len`; `frag` takes `off`, `id`, `proto`, `mf`; `tcp` takes letters
//! of SAFRP after `flags`, and `seq`, `ack`; `icmp4` and `icmp6` take type, code and `mtu`. `sum` sets a
//! checksum instead of computing it. Payloads: `text WORDS`, `hex DIGITS`, `zeros COUNT`.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Parsed words of one header.
struct Words<'a> {
    head: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
    flags: Vec<&'a str>,
}

const NAMED: [&str; 16] = [
    "ttl", "tos", "id", "off", "proto", "len", "opts", "hops", "tc", "flags", "seq", "ack", "mtu",
    "sum", "dlen", "ver",
];

impl<'a> Words<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parsed = Self {
            head: Vec::new(),
            named: BTreeMap::new(),
            flags: Vec::new(),
        };
        let mut words = text.split_whitespace().filter(|word| *word != ">");
        while let Some(word) = words.next() {
            if NAMED.contains(&word) {
                parsed.named.insert(word, words.next().expect(word));
            } else if ["df", "mf"].contains(&word) {
                parsed.flags.push(word);
            } else {
                parsed.head.push(word);
            }
        }
        parsed
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.named.get(name).map_or(default, |text| number(text))
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).expect(text),
        None => text.parse().expect(text),
    }
}

/// The MAC address of a name.
pub fn mac(name: &str) -> [u8; 6] {
    let last = match name {
        "lb" => 1,
        "client" => 2,
        "router" => 3,
        "r1" => 0x11,
        "r2" => 0x12,
        "r3" => 0x13,
        other => panic!("no machine {other}"),
    };
    [2, 0, 0, 0, 0, last]
}

/// The bytes of a frame.
pub fn build(text: &str) -> Vec<u8> {
    let layers: Vec<&str> = text.split('|').map(str::trim).collect();
    layer(&layers, &[])
}

/// One header and what follows it; `pseudo` is what checksums cover besides.
fn layer(layers: &[&str], pseudo: &[u8]) -> Vec<u8> {
    let Some((first, rest)) = layers.split_first() else {
        return Vec::new();
    };
    let (kind, arguments) = first.split_once(' ').unwrap_or((first, ""));
    let words = || Words::parse(arguments);
    match kind {
        "eth" => ethernet(&words(), rest),
        "vlan" => {
            let tag = number(arguments) as u16;
            let inside = layer(rest, &[]);
            [
                &tag.to_be_bytes()[..],
                &ethertype(rest).to_be_bytes(),
                &inside,
            ]
            .concat()
        }
        "ip4" => ipv4(&words(), rest),
        "ip6" => ipv6(&words(), rest),
        "frag" => fragment(&words(), rest, pseudo),
        "tcp" => tcp(&words(), rest, pseudo),
        "udp" => udp(&words(), rest, pseudo),
        "icmp4" => icmp(&words(), rest, &[]),
        "icmp6" => icmp(&words(), rest, pseudo),
        "text" => arguments.as_bytes().to_vec(),
        "zeros" => vec![0; number(arguments) as usize],
        "hex" => hex(arguments),
        other => panic!("no header {other}"),
    }
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("filtered") as u8;
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn kind<'a>(rest: &[&'a str]) -> &'a str {
    rest.first()
        .and_then(|layer| layer.split_whitespace().next())
        .unwrap_or("")
}

fn ethertype(rest: &[&str]) -> u16 {
    match kind(rest) {
        "ip4" => 0x0800,
        "ip6" => 0x86dd,
        "vlan" => 0x8100,
        _ => 0x0806,
    }
}

fn proto(words: &Words, rest: &[&str]) -> u8 {
    let known = match kind(rest) {
        "icmp4" => 1,
        "ip4" => 4,
        "tcp" => 6,
        "udp" => 17,
        "ip6" => 41,
        "frag" => 44,
        "icmp6" => 58,
        _ => 0,
    };
    words.number("proto", known) as u8
}

fn ethernet(words: &Words, rest: &[&str]) -> Vec<u8> {
    let [from, to] = words.head[..] else {
        panic!("eth FROM > TO")
    };
    let inside = layer(rest, &[]);
    [
        &mac(to)[..],
        &mac(from),
        &ethertype(rest).to_be_bytes(),
        &inside,
    ]
    .concat()
}

fn addrs(words: &Words) -> Vec<u8> {
    let octets = |addr: &&str| match addr.parse().expect(addr) {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    words.head[..2].iter().flat_map(octets).collect()
}

fn ipv4(words: &Words, rest: &[&str]) -> Vec<u8> {
    let addrs = addrs(words);
    let proto = proto(words, rest);
    let inside = layer(rest, &[&addrs[..], &[0, proto]].concat());
    let options = words.number("opts", 0) as usize;
    let len = words.number("len", (20 + 4 * options + inside.len()) as u64) as u16;
    let flags = (u16::from(words.has("df")) << 14) | (u16::from(words.has("mf")) << 13);
    let fragment = flags | (words.number("off", 0) / 8) as u16;
    let mut head = vec![0x45 + options as u8, words.number("tos", 0) as u8];
    head.extend(len.to_be_bytes());
    head.extend((words.number("id", 0) as u16).to_be_bytes());
    head.extend(fragment.to_be_bytes());
    head.extend([words.number("ttl", 64) as u8, proto, 0, 0]);
    head.extend(addrs);
    // Options that do nothing.
    head.extend(vec![1; 4 * options]);
    let sum = sum(&[&head]);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    [head, inside].concat()
}

fn ipv6(words: &Words, rest: &[&str]) -> Vec<u8> {
    let addrs = addrs(words);
    let proto = proto(words, rest);
    let last = if proto == 44 { 0 } else { proto };
    let inside = layer(rest, &[&addrs[..], &[0, last]].concat());
    let len = words.number("len", inside.len() as u64) as u16;
    let head = 0x6000_0000_u32 | (words.number("tc", 0) as u32) << 20;
    let mut bytes = head.to_be_bytes().to_vec();
    bytes.extend(len.to_be_bytes());
    bytes.extend([proto, words.number("hops", 64) as u8]);
    bytes.extend(addrs);
    [bytes, inside].concat()
}

fn fragment(words: &Words, rest: &[&str], pseudo: &[u8]) -> Vec<u8> {
    let next = proto(words, rest);
    let mut pseudo = pseudo.to_vec();
    if let Some(last) = pseudo.last_mut() {
        *last = next;
    }
    let offset = words.number("off", 0) as u16 | u16::from(words.has("mf"));
    let mut bytes = vec![next, 0];
    bytes.extend(offset.to_be_bytes());
    bytes.extend((words.number("id", 0) as u32).to_be_bytes());
    [bytes, layer(rest, &pseudo)].concat()
}

fn tcp(words: &Words, rest: &[&str], pseudo: &[u8]) -> Vec<u8> {
    let inside = layer(rest, &[]);
    let flag = |letter| match letter {
        'F' => 1,
        'S' => 2,
        'R' => 4,
        'P' => 8,
        'A' => 16,
        other => panic!("no flag {other}"),
    };
    let flags = words.named.get("flags").unwrap_or(&"A");
    let flags = flags.chars().map(flag).sum::<u8>();
    let mut bytes = ports(words);
    bytes.extend((words.number("seq", 1) as u32).to_be_bytes());
    bytes.extend((words.number("ack", 0) as u32).to_be_bytes());
    bytes.extend([0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    bytes.extend(inside);
    let len = bytes.len() as u16;
    let sum = words.number("sum", u64::from(sum(&[pseudo, &len.to_be_bytes(), &bytes])));
    bytes[16..18].copy_from_slice(&(sum as u16).to_be_bytes());
    bytes
}

fn ports(words: &Words) -> Vec<u8> {
    let port = |at: usize| (number(words.head[at]) as u16).to_be_bytes();
    [port(0), port(1)].concat()
}

fn udp(words: &Words, rest: &[&str], pseudo: &[u8]) -> Vec<u8> {
    let inside = layer(rest, &[]);
    let len = words.number("len", 8 + inside.len() as u64) as u16;
    let mut bytes = ports(words);
    bytes.extend(len.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(inside);
    let computed = match sum(&[pseudo, &len.to_be_bytes(), &bytes]) {
        0 => 0xffff,
        other => other,
    };
    let sum = words.number("sum", u64::from(computed));
    bytes[6..8].copy_from_slice(&(sum as u16).to_be_bytes());
    bytes
}

fn icmp(words: &Words, rest: &[&str], pseudo: &[u8]) -> Vec<u8> {
    let mut bytes = vec![
        number(words.head[0]) as u8,
        number(words.head[1]) as u8,
        0,
        0,
    ];
    bytes.extend((words.number("mtu", 0) as u32).to_be_bytes());
    bytes.extend(layer(rest, &[]));
    let len = bytes.len() as u16;
    let sum = match pseudo {
        [] => sum(&[&bytes]),
        pseudo => sum(&[pseudo, &len.to_be_bytes(), &bytes]),
    };
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The Internet checksum of parts, each but the last of even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// Where two frames differ, for people.
pub fn difference(got: &[u8], wanted: &[u8]) -> String {
    let shown = |bytes: &[u8]| {
        let rows = bytes.chunks(16).enumerate().map(|(row, bytes)| {
            let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("  {:3}  {}", row * 16, bytes.join(" "))
        });
        rows.collect::<Vec<_>>().join("\n")
    };
    let at = got
        .iter()
        .zip(wanted)
        .position(|(got, wanted)| got != wanted);
    let at = at.unwrap_or(got.len().min(wanted.len()));
    format!(
        "they differ from byte {at} on; got {} bytes\n{}\nwanted {} bytes\n{}",
        got.len(),
        shown(got),
        wanted.len(),
        shown(wanted)
    )
}
