"""An OpenAI-shaped server for models: requests in JSON, texts written beside one another.

parameters.py checks what a request asks for, chat.py makes a prompt of a conversation, scheduler.py writes many texts
at once with text_job.py, responses.py shapes the answers, endpoints.py puts it together; models.py holds what is
served, metrics.py counts.
"""
