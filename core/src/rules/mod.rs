//! Pure functions of the model: each answers one question.

pub mod entry_origin;
pub mod image_verdict;
pub mod leader_fitness;
pub mod loss_evidence;
pub mod operator_request;
pub mod plan;
pub mod reboot_proof;
pub mod refusal;
pub mod silence;
pub mod single_writer;
pub mod unread;
