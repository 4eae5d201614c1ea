"""The page: one module per tab, theme, strings. Only here is gradio imported; torch never is."""
