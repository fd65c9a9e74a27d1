//! What documents can say beside TCP by translation: UDP, IPv6, prefixes, QUIC, and tunnels that end in nodes on the
//! backends' machines.

use serde_json::{Value, json};

use super::*;

fn listener(name: &str, vip: &str, port: u16, fields: Value) -> Value {
    let mut listener = json!({
        "name": name, "protocol": "tcp", "vip": vip, "port": port, "pool": "web", "syn_cookies": "off"
    });
    let (all, own) = (listener.as_object_mut().unwrap(), fields);
    all.extend(own.as_object().unwrap().clone());
    listener
}

/// One VIP of each kind; backends of tunnels have the VIP's own port.
fn document() -> Value {
    let pool = |name: &str, port: u16, address: fn(u32) -> String| {
        let backend = |at: u32| {
            json!({
                "name": format!("b{at}"), "address": address(at), "port": port, "quic_server": at + 1
            })
        };
        json!({
            "name": name,
            "health_check": { "kind": "tcp", "port": 8080, "interval_ms": 100, "rise": 1, "fall": 2 },
            "backends": [backend(2), backend(3), backend(4)],
        })
    };
    let v4 = |at| format!("10.{at}.0.2");
    json!({ "balancers": [{
        "name": "web",
        "listeners": [
            listener("http", "192.0.2.1", 80, json!({})),
            listener("v6", "2001:db8::1", 80, json!({ "pool": "six" })),
            listener("dns", "192.0.2.1", 53, json!({ "protocol": "udp", "pool": "udp" })),
            listener("quic", "192.0.2.1", 443, json!({ "protocol": "udp", "pool": "udp", "quic": true })),
            listener("many", "198.51.100.0/28", 0, json!({})),
            listener("ipip", "192.0.2.2", 8080, json!({ "pool": "same", "mode": "ipip" })),
            listener("gue", "192.0.2.3", 8080, json!({ "pool": "same", "mode": "gue" })),
            listener("direct", "192.0.2.4", 8080, json!({ "pool": "same", "mode": "direct" })),
        ],
        "pools": [
            pool("web", 8080, v4),
            pool("same", 0, v4),
            pool("udp", 5353, v4),
            pool("six", 8080, |at| format!("fd00:{at}::2")),
        ],
    }] })
}

/// Who answers packets of UDP, each from another port.
fn told(lab: &Lab, port: u16, packet: &str, times: usize) -> Vec<String> {
    let script = format!(
        "for _ in {{1..{times}}}; do
            exec 3<>/dev/udp/192.0.2.1/{port}
            printf '{packet}' >&3
            timeout 10 head -n 1 <&3 || break
        done | sort -u"
    );
    let output = lab.machines[0].command("bash -c").arg(script).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn every_kind_of_vip_reaches_its_backends_through_a_node() {
    let lab = Lab::new();
    let _servers: Vec<Piped> = (2..=4).map(|machine| lab.server(machine)).collect();
    let mut ends = Vec::new();
    for machine in 2..=4 {
        let this = &lab.machines[machine - 1];
        for vip in 2..=4 {
            this.run(&format!("ip addr add 192.0.2.{vip}/32 dev lo"));
        }
        let lines = format!(
            "pin_dir = \"\"\ntunnel_ends = [\"10.{machine}.0.2\"]\ntunnel_end_interfaces = [\"eth0\"]"
        );
        let dir = tempfile::tempdir().unwrap();
        let end = Lab::node_on(this, &dir, &lines);
        let path = "/v1/load-balancer-status";
        let (code, status) = Lab::call_on((this, &dir), &end, "GET", path, &Value::Null);
        assert_eq!(code, 200, "{status}");
        let interface = &status["interfaces"][0];
        assert_eq!(interface["purpose"], "end-tunnels", "{status}");
        assert_eq!(interface["attached"], "native", "{status}");
        ends.push((end, dir));
    }
    let node = lab.node_with("tunnel_source_v4 = \"10.255.0.1\"\n");
    lab.done(&node, "PUT", "/v1/load-balancers", &document());
    lab.wait_for(&node, ["up", "up", "up"]);

    let all = ["b2", "b3", "b4"];
    assert_eq!(lab.answers(30), all);
    assert_eq!(lab.answers_of(&["http://[2001:db8::1]/"], 30), all, "IPv6");
    let many = ["http://198.51.100.1:8080/", "http://198.51.100.14:8080/"];
    assert_eq!(lab.answers_of(&many, 40), all, "a prefix");
    for (mode, vip) in [("ipip", 2), ("gue", 3), ("direct", 4)] {
        let url = format!("http://192.0.2.{vip}:8080/");
        assert_eq!(lab.answers_of(&[&url], 30), all, "{mode}");
    }
    assert_eq!(told(&lab, 53, "x", 40), all, "UDP");
    assert_eq!(
        told(&lab, 443, "\\x40\\x00\\x00\\x03of-b3", 12),
        ["b3"],
        "QUIC"
    );
    assert_eq!(
        told(&lab, 443, "\\x40\\x00\\x00\\x04of-b4", 12),
        ["b4"],
        "QUIC"
    );

    let path = "/v1/load-balancer-status?name=web";
    let status = lab.done(&node, "GET", path, &Value::Null);
    let listeners = status["balancers"][0]["listeners"].as_array().unwrap();
    for listener in listeners {
        let (sent, lost) = (listener["packets"].as_u64(), listener["dropped"].as_u64());
        assert!(sent > Some(0) && lost == Some(0), "{listener}");
    }
    for (end, _dir) in ends {
        end.drain();
    }
    node.drain();
}
