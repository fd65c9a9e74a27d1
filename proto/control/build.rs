//! Compiles `proto/`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    const ID: &str = "format = \"uuid\"";
    api_build::compile(
        &["ultracloud/operations/v1/operations.proto"],
        &[
            ("ultracloud.operations.v1.GetOperationRequest.id", ID),
            ("ultracloud.operations.v1.WaitOperationRequest.id", ID),
            ("ultracloud.operations.v1.RetryOperationRequest.id", ID),
            (
                "ultracloud.operations.v1.ForceDeleteOperationRequest.id",
                ID,
            ),
            (
                "ultracloud.operations.v1.ListOperationsRequest.limit",
                "maximum = 1000",
            ),
            (
                "ultracloud.operations.v1.ListAuditEventsRequest.limit",
                "maximum = 1000",
            ),
        ],
    )
}
