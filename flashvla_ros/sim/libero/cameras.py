"""Pictures of a LIBERO scene: robosuite's own, or some that cost a quarter for a policy of one's own."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from flashvla_ros.core.types import ImageArray
from flashvla_ros.sim.libero.pixels import official_picture
from flashvla_ros.sim.libero.protocol import CAMERAS
from flashvla_ros.sim.simulator import closed_with, mujoco, plain_renderer, renderer

OFFICIAL, FAST = "official", "fast"
_RENDERED = 256  # side of robosuite's pictures in the official evaluation
_CELL_M = 0.006  # of visual meshes in fast pictures: corners within one cell become one
_FEW_FACES = 800  # a mesh that is not worth the trouble
# A single fast picture: the scene over the wrist's view, and what is left of each from the top; below is bare floor,
# and the gripper's own body.
SCENE_SHARE, SCENE_ROWS, _WRIST_ROWS = 10 / 16, 0.84, 0.84
_BASE_LINKS = tuple(f"robot0_link{index}" for index in range(4))  # hidden in fast pictures: they hide the scene


class LiberoCameras:
    """The cameras of one scene, as many as the checkpoint sees, 1 or 2; owns an OpenGL context.

    Official pictures are those of OpenVLA's evaluation, 224 pixels a side. Fast ones, `size` pixels a side, have
    coarser visual meshes, no shadows, no multisampling, the scene from nearer by, and where there is only one, the
    wrist's view below it. What objects stand on lies `height` m higher than libero_object's floor.
    """

    def __init__(self, model: Any, data: Any, render: str, size: int, count: int, height: float = 0.0) -> None:
        self._data, self._fast, self._size, self._count = data, render == FAST, size, count
        self.names = CAMERAS[:count]
        self._near = near_camera(height)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # what collides
        if self._fast:
            _coarsen(model)
            _hide(model, _BASE_LINKS)
            self._renderer = plain_renderer(model, 2 * size)
        else:
            self._renderer = renderer(model, _RENDERED)
        self.close = closed_with(self, self._renderer)

    def picture(self, name: str) -> ImageArray:
        """Return a camera's picture, RGB uint8 [side, side, 3].

        robosuite's pictures are upside down and the official code turns them by 180°, so what the model sees is the
        camera's picture mirrored left to right.
        """
        if not self._fast:
            return official_picture(self._raw(name)[:, ::-1])
        size = self._size
        if self._count > 1:
            return self._shrunk(self._near if name == CAMERAS[0] else name, size)
        rows = round(size * SCENE_SHARE)
        scene = self._shrunk(self._near, rows, SCENE_ROWS)
        return np.concatenate([scene, self._shrunk(CAMERAS[1], size - rows, _WRIST_ROWS)])

    def _raw(self, camera: Any) -> ImageArray:
        self._renderer.update_scene(self._data, camera=camera, scene_option=self._options)
        return self._renderer.render()

    def _shrunk(self, camera: Any, rows: int, share: float = 1.0) -> ImageArray:
        """Squeeze the upper share of a picture into so many rows of full width."""
        raw = self._raw(camera)[:, ::-1]
        part = np.ascontiguousarray(raw[: round(len(raw) * share)])
        image = cv2.resize(part, (self._size, rows), interpolation=cv2.INTER_AREA)
        return image.astype(np.uint8, copy=False)


def near_camera(height: float = 0.0) -> Any:
    """A free camera that sees every place of the table and the hand above it, from nearer by than agentview.

    The table is `height` m above libero_object's floor.
    """
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (-0.03, 0.03, 0.13 + height)
    camera.distance, camera.azimuth, camera.elevation = 0.92, 180.0, -45.0
    return camera


def _hide(model: Any, bodies: tuple[str, ...]) -> None:
    """Move the visible parts of bodies to a group that is not shown."""
    for name in bodies:
        model.geom_group[(model.geom_bodyid == model.body(name).id) & (model.geom_group == 1)] = 5


def _coarsen(model: Any) -> None:
    """Make visual meshes coarser by vertex clustering, in place, before a renderer reads them.

    Rossignac and Borrel 1993. Meshes that collide are left alone, so no step changes. libero_object's 308 000 faces
    become 66 000, and a picture 15 ms of a processor instead of 54, 2 grey levels away on average.
    """
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    meshes = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    for mesh in set(model.geom_dataid[meshes & ~collides]) - set(model.geom_dataid[meshes & collides]):
        if model.mesh_facenum[mesh] >= _FEW_FACES:
            _cluster(model, int(mesh))


def _cluster(model: Any, mesh: int) -> None:
    corners = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    cells = np.floor(model.mesh_vert[corners] / _CELL_M).astype(np.int64)
    _, first, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    faces = first[cell.ravel()][model.mesh_face[start : start + count]]
    ordered = np.sort(faces, axis=1)
    whole = np.flatnonzero((ordered[:, 0] != ordered[:, 1]) & (ordered[:, 1] != ordered[:, 2]))
    _, unique = np.unique(ordered[whole], axis=0, return_index=True)
    rows = whole[np.sort(unique)]
    model.mesh_face[start : start + len(rows)] = faces[rows]
    for array in (model.mesh_facenormal, model.mesh_facetexcoord):
        array[start : start + len(rows)] = array[start : start + count][rows]
    model.mesh_facenum[mesh] = len(rows)
