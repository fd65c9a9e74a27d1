//! Compiles `proto/`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    const NAME: &str = "min_length = 3, max_length = 63";
    api_build::compile(
        &["ultracloud/lightningstor/v1/buckets.proto"],
        &[
            ("ultracloud.lightningstor.v1.CreateBucketRequest.name", NAME),
            ("ultracloud.lightningstor.v1.GetBucketRequest.name", NAME),
            ("ultracloud.lightningstor.v1.DeleteBucketRequest.name", NAME),
            (
                "ultracloud.lightningstor.v1.ListBucketsRequest.limit",
                "maximum = 1000",
            ),
        ],
    )
}
