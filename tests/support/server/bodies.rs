//! The bodies of a heartbeat and of a sync, as strictly as the protocol writes them.

use serde::Deserialize;

/// Who a runner is and what it offers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeartbeatBody {
    pub(super) runner_version: String,
    pub(super) python_version: String,
    pub(super) django_version: String,
    pub(super) commands_hash: String,
}

/// One command of a sync; read only to refuse what has another shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandBody {
    pub(super) name: String,
    #[serde(rename = "app_label")]
    _app_label: String,
    #[serde(rename = "help_text")]
    _help_text: String,
    #[serde(default, rename = "bound_args")]
    _bound_args: Vec<BoundBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoundBody {
    #[serde(rename = "args")]
    _args: String,
    #[serde(rename = "label")]
    _label: String,
}
