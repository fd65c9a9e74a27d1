//! Every option, as it should be and otherwise.

use nbd_wire::*;

use crate::raw::{Client, request};
use crate::support::{Backend, DISK, Disk, MIB, Setup};

fn kind(replies: &[OptionReply]) -> ReplyType {
    match replies {
        [OptionReply::Error { kind, .. }] => *kind,
        other => panic!("not refused: {other:?}"),
    }
}

fn info(export: &str, wanted: Vec<u16>) -> ClientOption {
    ClientOption::Info {
        export: export.to_owned(),
        wanted,
    }
}

fn two_disks() -> Backend {
    let other = Disk {
        name: "",
        bytes: MIB,
        read_only: true,
    };
    Backend::start(Setup {
        disks: vec![DISK, other],
        ..Setup::default()
    })
}

#[test]
fn exports_are_listed_and_described() {
    let backend = two_disks();
    let mut client = Client::connect(backend.socket());
    let names = ["", "disk"].map(|name| OptionReply::Server(name.to_owned()));
    let listed = client.ask(&ClientOption::List);
    assert_eq!(listed, [&names[..], &[OptionReply::Ack]].concat());
    let said = client.ask(&info("disk", vec![1, 2, 3]));
    let sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: 32 << 20,
    };
    let flags = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 11;
    let expected = [
        Info::Export {
            bytes: 64 * MIB,
            flags,
        },
        Info::BlockSize(sizes),
        Info::Name("disk".into()),
        Info::Description("disk of memory".into()),
    ];
    let expected = expected.map(OptionReply::Info);
    assert_eq!(said, [&expected[..], &[OptionReply::Ack]].concat());
    // The other one is read-only, and it has no name.
    let flags = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8;
    let said = client.ask(&info("", vec![]));
    let bytes = MIB;
    assert_eq!(said[0], OptionReply::Info(Info::Export { bytes, flags }));
    assert_eq!(client.ask(&ClientOption::Abort), [OptionReply::Ack]);
    assert!(client.is_ended());
    backend.stop();
}

#[test]
fn what_is_refused_leaves_the_next_option_to_be_answered() {
    let backend = Backend::plain();
    let mut client = Client::connect(backend.socket());
    let none = ClientOption::Go {
        export: "none".into(),
        wanted: vec![],
    };
    assert_eq!(kind(&client.ask(&none)), ReplyType::UNKNOWN);
    let unknown = client.ask(&ClientOption::Unknown(OptionCode(11)));
    assert_eq!(kind(&unknown), ReplyType::UNSUPPORTED);
    let unsupported = client.ask(&ClientOption::StartTls);
    assert_eq!(kind(&unsupported), ReplyType::UNSUPPORTED);
    let early = ClientOption::SetMetaContext {
        export: "disk".into(),
        queries: vec!["base:allocation".into()],
    };
    assert_eq!(kind(&client.ask(&early)), ReplyType::INVALID);
    // A list with something in it, and an option that is far too long.
    for (code, len, refused) in [
        (OptionCode::LIST, 1, ReplyType::INVALID),
        (OptionCode::GO, 20_000, ReplyType::TOO_BIG),
    ] {
        client.send(&OPTION_MAGIC.to_be_bytes());
        client.send(&code.0.to_be_bytes());
        client.send(&(len as u32).to_be_bytes());
        client.send(&vec![0; len]);
        assert_eq!(kind(&client.replies(code)), refused);
    }
    client.go("disk");
    client.write(512, &[7; 512]);
    assert_eq!(client.read(512, 512), [7; 512]);
    backend.stop();
}

#[test]
fn an_export_is_chosen_by_its_name_alone() {
    let backend = Backend::plain();
    for zeroes in [false, true] {
        let mut client = Client::greet(backend.socket());
        client.send(&(if zeroes { 1_u32 } else { 3 }).to_be_bytes());
        client.send(&ClientOption::ExportName("disk".into()).encode());
        assert_eq!(u64::from_be_bytes(client.take()), 64 * MIB);
        let flags = u16::from_be_bytes(client.take());
        assert_eq!(flags & 1, 1);
        if zeroes {
            assert_eq!(client.take::<124>(), [0; 124]);
        }
        assert_eq!(client.read(0, 512), [0; 512]);
    }
    let mut client = Client::connect(backend.socket());
    client.send(&ClientOption::ExportName("none".into()).encode());
    assert!(client.is_ended());
    backend.wait_for("a refusal", |stats| stats.refusals == 1);
    backend.stop();
}

#[test]
fn contexts_are_listed_by_prefix_and_chosen_by_name() {
    let backend = Backend::plain();
    let mut client = Client::connect(backend.socket());
    client.ask(&ClientOption::StructuredReply);
    let export = || "disk".to_owned();
    let names = |replies: &[OptionReply]| -> Vec<(u32, String)> {
        let found = replies.iter().filter_map(|reply| match reply {
            OptionReply::MetaContext { id, name } => Some((*id, name.clone())),
            _ => None,
        });
        found.collect()
    };
    let all = ["base:allocation", "ultracloud:changed-since:monday"];
    let all = [&all[..], &["qemu:dirty-bitmap:monday"]].concat();
    for (query, found) in [
        (vec![], &all[..]),
        (vec!["base:"], &all[..1]),
        (vec!["ultracloud:"], &all[1..2]),
        (vec!["qemu:dirty-bitmap:"], &all[2..]),
        (vec!["base:other", "qemu"], &[]),
    ] {
        let listed = client.ask(&ClientOption::ListMetaContext {
            export: export(),
            queries: query.iter().map(|&name| name.to_owned()).collect(),
        });
        let listed = names(&listed);
        let listed: Vec<&str> = listed.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(listed, found, "{query:?}");
    }
    // A prefix chooses nothing.
    let chosen = client.ask(&ClientOption::SetMetaContext {
        export: export(),
        queries: vec!["base:".into(), "qemu:dirty-bitmap:monday".into()],
    });
    let wanted = vec![(2, "qemu:dirty-bitmap:monday".to_owned())];
    assert_eq!(names(&chosen), wanted);
    client.go("disk");
    let answer = client.call(request(Command::BlockStatus, 0, 4096), &[]);
    assert_eq!(answer.status, [(2, vec![(4096, 0)])]);
    backend.stop();
}

#[test]
fn contexts_of_one_export_are_not_those_of_another() {
    let backend = two_disks();
    let mut client = Client::connect(backend.socket());
    client.ask(&ClientOption::StructuredReply);
    client.ask(&ClientOption::SetMetaContext {
        export: String::new(),
        queries: vec!["base:allocation".into()],
    });
    client.go("disk");
    let refused = client.refused(request(Command::BlockStatus, 0, 4096), &[]);
    assert_eq!(refused, NbdError::INVALID);
    backend.stop();
}
