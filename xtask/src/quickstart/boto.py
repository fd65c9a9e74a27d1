"""boto3's part of the quickstart. Endpoint and keys come from the environment.

put     puts the large file in parts and reads it in every way
get     downloads it and tells its digest
churn   puts small objects until the node is gone; --file gets a line for each acknowledged one
check   reads what churn was told to be safe

Prints one JSON object. A fact that does not hold ends it with 1 and says which.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
import urllib.request

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

MIB = 1024 * 1024
TRANSFER = TransferConfig(
    multipart_threshold=16 * MIB, multipart_chunksize=16 * MIB, max_concurrency=4
)
METADATA = {"origin": "quickstart", "note": "kept with the object"}


def fact(holds, what):
    if not holds:
        sys.exit(f"does not hold: {what}")


def refused(status, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        found = error.response["ResponseMetadata"]["HTTPStatusCode"]
        fact(found == status, f"{arguments} is refused with {status}, not {found}")
        return
    fact(False, f"{arguments} is refused with {status}")


def piece(path, start, length):
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def put(s3, bucket, key, path):
    size = os.path.getsize(path)
    s3.create_bucket(Bucket=bucket)
    extra = {"Metadata": METADATA, "ContentType": "application/x-quickstart"}
    s3.upload_file(path, bucket, key, ExtraArgs=extra, Config=TRANSFER)

    head = s3.head_object(Bucket=bucket, Key=key)
    fact(head["ContentLength"] == size, "the object has the file's length")
    fact(head["Metadata"] == METADATA, "metadata comes back as it was sent")
    fact(head["ContentType"] == "application/x-quickstart", "the content type comes back")
    etag = head["ETag"]
    fact("-" in etag, "the object was put in parts")

    at = {"Bucket": bucket, "Key": key}
    refused(304, s3.get_object, **at, IfNoneMatch=etag)
    refused(412, s3.get_object, **at, IfMatch='"0123456789abcdef0123456789abcdef"')
    refused(412, s3.put_object, **at, Body=b"late", IfNoneMatch="*")

    # Across a part's border, the first bytes, the last bytes, and past the end.
    for start, length in ((16 * MIB - 1000, 2000), (0, 1), (size - 4097, 4097)):
        wanted = f"bytes={start}-{start + length - 1}"
        part = s3.get_object(**at, Range=wanted, IfMatch=etag)
        fact(part["ResponseMetadata"]["HTTPStatusCode"] == 206, f"{wanted} is partial")
        fact(part["Body"].read() == piece(path, start, length), f"{wanted} holds those bytes")
    refused(416, s3.get_object, **at, Range=f"bytes={size}-")

    # boto3 signs URLs by version 2 unless it is told otherwise.
    v4 = boto3.client("s3", config=s3.meta.config.merge(Config(signature_version="s3v4")))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for signer in (s3, v4):
        url = signer.generate_presigned_url("get_object", Params=at, ExpiresIn=300)
        request = urllib.request.Request(url, headers={"Range": "bytes=4096-8191"})
        with opener.open(request, timeout=60) as answer:
            fact(answer.read() == piece(path, 4096, 4096), "a presigned URL needs no keys")
    return {"bytes": size, "parts": int(etag.strip('"').rsplit("-", 1)[1])}


def get(s3, bucket, key, path):
    s3.download_file(bucket, key, path, Config=TRANSFER)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(4 * MIB):
            digest.update(block)
    return {"bytes": os.path.getsize(path), "sha256": digest.hexdigest()}


WRITERS = 8
PUTS_PER_WRITER_MAX = 20_000


def small_body(writer, number):
    """Bytes that only this object has: mostly a few KiB, some past what is kept inline."""
    seed = hashlib.sha256(f"{writer}/{number}".encode()).digest()
    return seed * (4096 if number % 50 == 49 else 1 + number * 7 % 300)


def churn(s3, bucket, key, path):
    s3.create_bucket(Bucket=bucket)
    lock = threading.Lock()
    refusals = []

    def write(writer):
        for number in range(PUTS_PER_WRITER_MAX):
            try:
                s3.put_object(
                    Bucket=bucket, Key=f"{key}/{writer}/{number}", Body=small_body(writer, number)
                )
            except ClientError as error:
                # The node answered, so it was not gone.
                refusals.append(str(error))
                return
            except BotoCoreError:
                return
            with lock:
                acknowledged.write(f"{writer} {number}\n")
                acknowledged.flush()

    with open(path, "w") as acknowledged:
        writers = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join()
    fact(not refusals, f"no put is refused: {refusals}")
    return {}


def check(s3, bucket, key, path):
    with open(path) as acknowledged:
        safe = [tuple(map(int, line.split())) for line in acknowledged]
    following = {writer: 0 for writer in range(WRITERS)}
    for writer, number in safe:
        following[writer] = number + 1
        name = f"{key}/{writer}/{number}"
        body = s3.get_object(Bucket=bucket, Key=name)["Body"].read()
        fact(body == small_body(writer, number), f"{name}, acknowledged, is whole")
    # What was under way at the kill may be there or not, but never in part.
    under_way = 0
    for writer, number in following.items():
        name = f"{key}/{writer}/{number}"
        try:
            body = s3.get_object(Bucket=bucket, Key=name)["Body"].read()
        except ClientError as error:
            fact(error.response["Error"]["Code"] == "NoSuchKey", f"{name} is there or is not")
            continue
        fact(body == small_body(writer, number), f"{name}, under way at the kill, is whole")
        under_way += 1
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    listed = sum(page["KeyCount"] for page in pages)
    fact(listed == len(safe) + under_way, f"{listed} are listed, {len(safe)} + {under_way} exist")
    return {"acknowledged": len(safe), "under_way": under_way}


def main():
    verbs = {"put": put, "get": get, "churn": churn, "check": check}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=verbs)
    for name in ("bucket", "key", "file"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    config = Config(
        s3={"addressing_style": "path"},
        proxies={},
        # What churn is told must be the first answer, not that of a second try.
        retries={"total_max_attempts": 1 if arguments.verb == "churn" else 3},
        read_timeout=120,
        max_pool_connections=WRITERS,
    )
    s3 = boto3.client("s3", config=config)
    verb = verbs[arguments.verb]
    print(json.dumps(verb(s3, arguments.bucket, arguments.key, arguments.file)))


if __name__ == "__main__":
    main()
