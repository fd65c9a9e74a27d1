"""What etcd3gw does over the JSON gateway; each line of output is one thing that held."""

import sys

import etcd3gw

client = etcd3gw.client(host=sys.argv[1], port=int(sys.argv[2]), api_path="/v3/")


def held(what, is_so):
    if not is_so:
        raise SystemExit(f"not so: {what}")
    print(what)


held("put and get", client.put("foo", "bar") and client.get("foo") == [b"bar"])
held("prefix", [value for value, _ in client.get_prefix("f")] == [b"bar"])

lease = client.lease(ttl=100)
held("a lease holds a key", client.put("leased", "1", lease=lease) and lease.keys() == [b"leased"])
held("a lease is renewed", lease.refresh() == 100 and 0 < lease.ttl() <= 100)
held("a revoked lease takes its key", lease.revoke() and client.get("leased") == [])

held("create once", client.create("once", "1") and not client.create("once", "2"))
held("replace what is known", client.replace("once", "1", "3") and not client.replace("once", "1", "4"))
held("the right one is kept", client.get("once") == [b"3"])

with client.lock("name", ttl=10) as lock:
    held("locked", lock.is_acquired())
held("unlocked", not lock.is_acquired())

first = int(client.get("once", metadata=True)[0][1]["mod_revision"])
events, cancel = client.watch("once", start_revision=first)
held("a watch tells what was", next(iter(events))["kv"]["value"] == b"3")
cancel()

held("delete", client.delete("foo") and client.get("foo") == [])
held("one member", len(client.members()) == 1)
