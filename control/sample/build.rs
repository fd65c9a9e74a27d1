//! Compiles `proto/`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    const NAME: &str = "required, min_length = 1, max_length = 63, pattern = \"^[a-z0-9-]{1,63}$\"";
    api_build::compile(
        &["sample/v1/widgets.proto"],
        &[
            ("sample.v1.CreateWidgetRequest.name", NAME),
            ("sample.v1.GetWidgetRequest.name", NAME),
            ("sample.v1.DeleteWidgetRequest.name", NAME),
            (
                "sample.v1.CreateWidgetRequest.size",
                "required, minimum = 1, maximum = 1000000",
            ),
        ],
    )
}
