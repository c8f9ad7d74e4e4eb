"""~/overlay/compressed: drawn on a thread of its own, only while somebody watches, newest step only."""

from __future__ import annotations

import threading

from rclpy.lifecycle import LifecyclePublisher
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from flashvla_ros.control.mailbox import Mailbox
from flashvla_ros.control.stepper import StepResult
from flashvla_ros.messages.images import encode_compressed


class OverlayPublisher:
    """Takes step results without delay; drawing and JPEG cost tens of milliseconds that no command waits for."""

    def __init__(self, publisher: LifecyclePublisher[CompressedImage]) -> None:
        self._publisher = publisher
        self._mailbox: Mailbox[tuple[StepResult, Header]] = Mailbox()
        self._thread = threading.Thread(target=self._run, name="flashvla-overlay", daemon=True)
        self._thread.start()

    def post(self, result: StepResult, header: Header) -> None:
        """Draw a step, if anybody watches and no newer one comes first."""
        if self._publisher.get_subscription_count():
            self._mailbox.post((result, header))

    def close(self) -> None:
        """End the thread; the publisher may be destroyed afterwards."""
        self._mailbox.close()
        self._thread.join()

    def _run(self) -> None:
        from flashvla_ros.view.overlay import draw

        while (item := self._mailbox.take()) is not None:
            result, header = item
            self._publisher.publish(encode_compressed(draw(result), header))
