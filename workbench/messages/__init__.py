"""What the workbench says in sentences, English and Chinese: errors, reasons, states, reports."""
