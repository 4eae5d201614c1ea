"""What a run or a chat will take, beside the forms of the Train and Chat tabs: `view` as text, HTML and chart, `panel`
as components."""
