//! Every command of etcdctl 3.4, as a script that both sides run.

use crate::side::{Step, step};

/// Commands in words, one a line.
fn lines(text: &str) -> impl Iterator<Item = Step> + '_ {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty()).map(step)
}

pub fn keys() -> Vec<Step> {
    let mut steps: Vec<Step> = lines(
        "get a
         put a 1
         put a 2 --prev-kv
         put b/1 one
         put b/2 two
         put b/3 three
         put c x
         get a
         get a --rev=2
         get a --rev=99999
         get a --rev=-1
         get a --hex
         get a --print-value-only
         get a --consistency=s
         get a --consistency=x
         get missing
         get ''
         get '' --prefix
         get '' --from-key
         get b/2 --from-key
         get b/ --prefix --keys-only
         get b/ --prefix --count-only
         get b/ --prefix --limit=2
         get b/ --prefix --limit=3
         get b/ c
         get c b
         get b/ --prefix --from-key
         get b/ --prefix --order=DESCEND
         get b/ --prefix --order=DESCEND --limit=1
         get b/ --prefix --sort-by=VALUE
         get '' --prefix --sort-by=VERSION --order=DESCEND
         get '' --prefix --sort-by=CREATE --order=DESCEND
         get '' --prefix --sort-by=MODIFY --order=ASCEND --limit=2
         get '' --prefix --sort-by=NONE
         put '' v
         put a
         put a v --ignore-value
         put a --ignore-value
         put a w --ignore-lease
         put fresh --ignore-value
         put fresh v --ignore-lease
         put a v --lease=12345
         put a v --lease=xyz
         del missing
         del ''
         del a --prev-kv
         del b/1 b/3 --prev-kv
         del b/ --prefix
         put d 1
         del c --from-key --prev-kv
         del '' --prefix
         put z 1",
    )
    .collect();
    steps.push(step("put stdin").input("value of stdin"));
    steps
}

pub fn transactions() -> Vec<Step> {
    let mut steps: Vec<Step> = lines("put t/a 1\nput t/b 2").collect();
    for input in [
        "value(\"t/a\") = \"1\"\n\nput t/a 1\nget t/a\n\nget t/b\n\n",
        "value(\"t/a\") != \"1\"\n\nput t/a 3\n\ndel t/b\nget t/ --prefix\n\n",
        "mod(\"t/a\") > \"0\"\n\nput t/c 1\ndel t/c\n\n\n",
        "mod(\"t/a\") > \"0\"\n\nget t/ --prefix --keys-only\nget t/a --rev=1\n\n\n",
        "c(\"t/a\") > \"2\"\n\nput t/d 1 --prev-kv\nput t/e 2\n\n\n",
        "create(\"t/none\") = \"0\"\n\ndel t/ --prefix --prev-kv\n\n\n",
        "ver(\"t/a\") < \"100\"\n\nput t/a 1\nput t/a 2\n\n\n",
        "version(\"t/none\") = \"0\"\n\nput t/a new --lease=99\n\n\n",
        "value(\"t/none\") = \"\"\n\nget t/a\n\nget t/b\n\n",
        "\n\nput t/a 1\n\n",
        "nonsense\n\nput t/a 1\n\n\n",
        "\nget t/a --rev=99999\n\n\n",
        "\nput '' 1\n\n\n",
    ] {
        steps.push(step("txn").input(input));
    }
    steps.push(step("get '' --prefix"));
    steps
}

pub fn compactions() -> Vec<Step> {
    lines(
        "put k 1
         put k 2
         put k 3
         del k
         put k 4
         compaction 12
         compaction 12
         compaction 0
         compaction 99999
         get k --rev=3
         get k --rev=12
         compaction 14 --physical
         endpoint hashkv
         endpoint hashkv --rev=14
         endpoint hashkv --rev=3
         endpoint hashkv --rev=99999
         defrag
         get k",
    )
    .collect()
}

pub fn leases() -> Vec<Step> {
    let mut steps = vec![step("lease list"), step("lease grant 600").keep("lease", 1)];
    steps.extend(lines(
        "lease grant 600
         lease list
         put l/a 1 --lease={lease}
         put l/b 1 --lease={lease}
         put l/a 2 --ignore-lease
         get l/ --prefix
         lease timetolive {lease}
         lease timetolive {lease} --keys
         lease keep-alive {lease} --once
         lease keep-alive 12345 --once
         lease timetolive 12345
         lease grant 0
         lease grant -5
         lease grant 9000000001
         lease grant x
         put l/b 2
         lease timetolive {lease} --keys
         lease revoke {lease}
         get l/ --prefix
         lease revoke {lease}
         lease timetolive {lease}
         lease timetolive {lease} --keys
         lease keep-alive {lease} --once",
    ));
    steps
}

/// On a cluster of one member.
pub fn cluster() -> Vec<Step> {
    let mut steps: Vec<Step> = lines(
        "put a 1
         version
         member list
         endpoint health
         endpoint health --cluster
         endpoint hashkv
         alarm list
         alarm disarm
         alarm nonsense
         defrag
         move-leader 12345
         move-leader x
         move-leader
         move-leader {member}
         member add x
         member add x --peer-urls=nonsense
         member add x --peer-urls=http://127.0.0.9
         member add --peer-urls=http://127.0.0.9:1
         member add x --peer-urls={peer_url}
         member add x --peer-urls={peer_url} --learner
         member promote {member}
         member promote 12345
         member promote
         member update 12345 --peer-urls=http://127.0.0.9:1
         member update {member} --peer-urls=nonsense
         member update {member}
         member update {member} --peer-urls={peer_url}
         member remove 12345
         member remove x
         member remove",
    )
    .collect();
    for command in ["status", "status --cluster", "hashkv --cluster"] {
        steps.push(step(&format!("endpoint {command}")).json());
    }
    let added = "member add second --learner --peer-urls=http://127.0.0.9:1";
    steps.push(step(added).keep("learner", 1));
    steps.extend(lines(
        "member add third --learner --peer-urls=http://127.0.0.9:1
         member list
         member promote {learner}",
    ));
    let too_many = "member add third --learner --peer-urls=http://127.0.0.9:2";
    steps.push(step(too_many).keep("third", 1));
    steps.push(step("member remove {third}").plain());
    // Last of all that is done to it: etcd counts it among the voters from then on.
    steps.extend(lines(
        "member update {learner} --peer-urls={peer_url}
         member update {learner} --peer-urls=http://127.0.0.9:3
         member list",
    ));
    steps.push(step("member remove {learner}").plain());
    steps.extend(lines(
        "member remove {learner}
         member list
         lock m echo held
         lock m false",
    ));
    steps
}

/// On a cluster of three members, with each as an endpoint.
pub fn members() -> Vec<Step> {
    let mut steps: Vec<Step> = lines(
        "put a 1
         member list
         endpoint health
         endpoint health --cluster
         endpoint hashkv
         alarm list
         alarm disarm
         defrag
         move-leader {follower}
         move-leader {follower}
         move-leader 12345
         put a 2
         get a",
    )
    .collect();
    steps.push(step("endpoint status").json());
    steps.push(step("move-leader {leader}").plain());
    steps.push(step("member promote {leader}"));
    steps
}

/// On the same, with the leader alone as an endpoint.
pub fn at_the_leader() -> Vec<Step> {
    let mut steps = vec![step("member remove {follower}").plain()];
    steps.extend(lines(
        "member remove {follower}
         member list
         put a 3
         get a",
    ));
    steps
}

/// Users and roles, without authentication and with it.
pub fn users() -> Vec<Step> {
    let mut steps: Vec<Step> = lines(
        "user list
         role list
         auth enable
         user add root:pw
         user add root:pw
         user add alice:pw
         user add bob --no-password
         user add :pw
         user get alice
         user get nobody
         user list
         role add reader
         role add reader
         role add writer
         role get reader
         role get nobody
         role grant-permission reader read r/a
         role grant-permission reader read r/ s
         role grant-permission reader readwrite --prefix p/
         role grant-permission reader read --from-key x
         role grant-permission nobody read a
         role grant-permission reader nonsense a
         role grant-permission writer write r/ --prefix
         role get reader
         role revoke-permission reader r/a
         role revoke-permission reader r/a
         role revoke-permission reader r/ s
         role revoke-permission nobody r/a
         role grant-permission reader read r/ --prefix
         role get root
         user grant-role alice reader
         user grant-role alice reader
         user grant-role alice nobody
         user grant-role nobody reader
         user get alice
         user get alice --detail
         user revoke-role alice writer
         user grant-role root root
         auth enable",
    )
    .map(Step::plain)
    .collect();
    steps.push(step("user passwd alice --interactive=false").input("pw2"));
    steps.extend(with_authentication());
    steps.extend(
        lines(
            "user list
             --user=root:pw user delete alice
             --user=root:pw user delete alice
             --user=root:pw role delete reader
             --user=root:pw role delete reader
             --user=root:pw auth disable
             auth disable
             user list
             role list",
        )
        .map(Step::plain),
    );
    steps
}

fn with_authentication() -> impl Iterator<Item = Step> {
    lines(
        "get a
         put a 1
         user list
         user get root
         member list
         endpoint health
         lease grant 600
         --user=root:wrong get a
         --user=nobody:pw get a
         --user=bob:pw get a
         --user=root:pw put r/a 1
         --user=root:pw get r/a
         --user=root:pw user list
         --user=root:pw user get alice
         --user=root:pw role list
         --user=root:pw user delete root
         --user=root:pw role delete root
         --user=root:pw user revoke-role root root
         --user=alice:pw2 get r/a
         --user=alice:pw2 get r/ --prefix
         --user=alice:pw2 get a
         --user=alice:pw2 get '' --prefix
         --user=alice:pw2 put r/a 2
         --user=alice:pw2 put p/a 2 --prev-kv
         --user=alice:pw2 del p/ --prefix --prev-kv
         --user=alice:pw2 user get alice
         --user=alice:pw2 user get root
         --user=alice:pw2 role get reader
         --user=alice:pw2 role get writer
         --user=alice:pw2 role list
         --user=alice:pw2 user list
         --user=alice:pw2 role add x
         --user=alice:pw2 auth disable
         --user=alice:pw2 compaction 2
         --user=alice:pw2 member list
         --user=alice:pw2 endpoint hashkv
         --user=alice:pw2 alarm list
         --user=alice:pw2 alarm disarm
         --user=alice:pw2 defrag
         --user=alice:pw2 lease list
         --user=alice:pw2 lock r/lock echo held
         --user=alice:pw2 lock p/lock echo held",
    )
    .map(|step| {
        if step.told().ends_with("member list") {
            step.json()
        } else {
            step.plain()
        }
    })
}
